package main

import "github.com/urfave/cli/v3"

func runCommand() *cli.Command { return &cli.Command{Name: "run"} }
