package main

import "github.com/urfave/cli/v3"

func doctorCommand() *cli.Command { return &cli.Command{Name: "doctor"} }
