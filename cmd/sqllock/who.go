package main

import "github.com/urfave/cli/v3"

func whoCommand() *cli.Command { return &cli.Command{Name: "who"} }
