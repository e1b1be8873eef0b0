package main

import "github.com/urfave/cli/v3"

func breakCommand() *cli.Command { return &cli.Command{Name: "break"} }
