/* A child that a C library forks while the interpreter's threads run: nothing of Python runs in it. It says that it is
 * there, lives until the other end of its pipe is closed, and ends. */
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

int fork_and_live_on(int with_handlers, int reader, int writer, int there)
{
    int pid = with_handlers ? fork() : (int)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    char byte = 0;
    if (pid != 0)
        return pid;
    close(writer);
    _exit(write(there, &byte, 1) != 1 || read(reader, &byte, 1) != 0);
}
