package main

import "github.com/urfave/cli/v3"

func migrateCommand() *cli.Command { return &cli.Command{Name: "migrate"} }
