/* The shim: what Python calls. One translation unit, so that its parts share static functions. */
#ifndef _GNU_SOURCE /* cffi's own source is compiled with it as well, from the command line */
#define _GNU_SOURCE
#endif
#include "calls.c"
#include "thread.c"
#include "launch.c"
#include "fork.c"
#include "hold.c"
