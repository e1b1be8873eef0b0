package main

import "github.com/urfave/cli/v3"

func sweepCommand() *cli.Command { return &cli.Command{Name: "sweep"} }
