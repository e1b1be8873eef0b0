package main

import "github.com/urfave/cli/v3"

func waitCommand() *cli.Command { return &cli.Command{Name: "wait"} }
