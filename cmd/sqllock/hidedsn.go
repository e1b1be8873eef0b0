package main

// hideDSN is called first of all.
func hideDSN() {}
