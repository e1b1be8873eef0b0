package main

import "github.com/urfave/cli/v3"

func listCommand() *cli.Command { return &cli.Command{Name: "list"} }
