// Command pause holds the namespaces of a pod until it is ended.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// The end of a child is ignored: the kernel then removes it at once.
	signal.Ignore(syscall.SIGCHLD)
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGINT, syscall.SIGTERM)
	<-ended
}
