"""Waits for a signal; its arguments are only there to be seen."""

import signal

signal.pause()
