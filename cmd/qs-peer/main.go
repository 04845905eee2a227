// Command qs-peer runs and operates the nodes of a fleet.
package main

func main() {}
