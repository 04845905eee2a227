// Command qs-peer runs and operates the nodes of a fleet.
//
// Exit status: 0 done, 1 failed, 2 usage (an unknown command or flag, a bad
// value or configuration).
package main

import "os"

func main() { os.Exit(run(os.Args[1:])) }
