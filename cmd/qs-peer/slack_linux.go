package main

// The Go runtime's monitor thread sleeps 20 µs at a time while there is something to
// do and the kernel grants it 50 µs more, so that with many short bursts of work, which
// is what receiving over many connections is, each process wakes 1,500 times a
// second for nothing: about a tenth of the processor time of a rebuild. The kernel may let
// all sleeps take a millisecond longer, as long as what the runtime's own timers
// are rounded to. Threads inherit this from those that start them, and the monitor is
// started before any Go code runs: hence C, which is called before the runtime.
//
// prctl(2), PR_SET_TIMERSLACK; what a service manager has set (TimerSlackNSec=) stands.

/*
#include <sys/prctl.h>

__attribute__((constructor)) static void set_timer_slack(void) {
	if (prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0) == 50 * 1000) // the kernel's default, ns
		prctl(PR_SET_TIMERSLACK, 1000 * 1000UL, 0, 0, 0);
}
*/
import "C"
