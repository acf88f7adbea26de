/* Writes to the file REPORT all that a program can see of how it was started: tests/fuzz.py. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

extern char **environ;

static char text[1 << 20];
static int used;

#define PUT(...) (used += snprintf(text + used, sizeof text - (size_t)used, __VA_ARGS__))

static void put_list(const char *name, char **list)
{
    for (; *list; list++)
        PUT("%s %s\n", name, *list);
}

/* Of a pipe, which end it is; a file by its inode. */
static void put_descriptors(void)
{
    struct stat found;
    for (int fd = 0; fd < 256; fd++)
        if (fstat(fd, &found) == 0)
            PUT("fd %d: %o %lu %o %o\n", fd, found.st_mode & S_IFMT, S_ISFIFO(found.st_mode) ? 0 : (unsigned long)found.st_ino,
                fcntl(fd, F_GETFL), fcntl(fd, F_GETFD));
}

static void put_signals(void)
{
    struct sigaction action;
    sigset_t blocked;
    sigprocmask(SIG_SETMASK, NULL, &blocked);
    for (int i = 1; i < 65; i++)
        if (sigaction(i, NULL, &action) == 0)
            PUT("%d%d", action.sa_handler == SIG_IGN, sigismember(&blocked, i));
}

static void put_ids(void)
{
    gid_t groups[64];
    uid_t r, e, s;
    getresuid(&r, &e, &s);
    PUT("\nuid %u %u %u\n", r, e, s);
    getresgid(&r, &e, &s);
    PUT("gid %u %u %u\n", r, e, s);
    int n = getgroups(64, groups);
    for (int i = 0; i < n; i++)
        PUT("group %u\n", groups[i]);
    PUT("leads: session %d, group %d\n", getsid(0) == getpid(), getpgrp() == getpid());
}

int main(int argc, char **argv)
{
    char cwd[4096] = "";
    put_descriptors();
    put_signals();
    put_ids();
    PUT("cwd %s\numask %o\nargc %d\n", getcwd(cwd, sizeof cwd) ? cwd : "?", umask(0), argc);
    put_list("arg", argv);
    put_list("env", environ);
    int fd = open(REPORT, O_WRONLY | O_TRUNC);
    return fd >= 0 && write(fd, text, (size_t)used) == used ? argc : 99;
}
