/* The joiner: the program that runs between the caller and the program asked for.
 *
 * It is started with a plan (struct nsjoin_plan) in a file, does what the plan says in a fixed order, and becomes the
 * program, or, where a PID namespace is joined, leaves a sibling behind that does. It is a program of its own so that
 * nothing of the caller (memory, dumpable flag, signal handlers, executable) is ever inside the target: between the first
 * setns and execve, whatever can see this process sees only what is in this file.
 *
 * No libc: raw system calls, no allocation, no string is built, nothing is parsed but the number of the plan's
 * descriptor. On machines without stubs below, the same source is built against libc (NSJOIN_HOSTED).
 *
 * What may be called after the clone in finish(): system calls only. The child runs in the joiner's memory and on its
 * stack while the joiner is suspended (CLONE_VM | CLONE_VFORK), so it never returns from there, and the joiner
 * needs nothing of its stack afterwards.
 */
#include "_setns.h"
#include <errno.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#ifndef __NR_close_range
#define __NR_close_range 436
#endif

/* Constants of the kernel's ABI that need headers which musl and old glibc lack. */
enum {
    K_SIG_BLOCK_SIZE = 8, K_SIG_SETMASK = 2, K_SIGPIPE = 13, K_SIGCHLD = 17, K_SIGXFSZ = 25,
    K_CLONE_VM = 0x100, K_CLONE_VFORK = 0x4000, K_CLONE_PARENT = 0x8000, K_CLONE_PARENT_SETTID = 0x100000,
    K_F_SETFD = 2, K_FD_CLOEXEC = 1, K_F_DUPFD_CLOEXEC = 1030,
    K_PROT_READ_WRITE = 3, K_MAP_SHARED = 1, K_RLIMIT_NOFILE = 7
};

#if defined(NSJOIN_HOSTED)

#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static long sys(long number, long a, long b, long c, long d, long e)
{
    long result = syscall(number, a, b, c, d, e);
    return result == -1 ? -errno : result;
}

#elif defined(__x86_64__)

static inline long sys(long number, long a, long b, long c, long d, long e)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = 0; /* the sixth argument: the offset of mmap, 0 wherever it is read */
    __asm__ volatile("syscall" : "+a"(number) : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return number;
}

__asm__(".text\n.globl _start\n_start:\n"
        "xor %ebp, %ebp\n"
        "mov %rsp, %rdi\n"
        "and $-16, %rsp\n"
        "call nsjoin_start\n");

#elif defined(__aarch64__)

static inline long sys(long number, long a, long b, long c, long d, long e)
{
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = 0;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}

__asm__(".text\n.globl _start\n_start:\n"
        "mov x29, #0\n"
        "mov x30, #0\n"
        "mov x0, sp\n"
        "bl nsjoin_start\n");

#else
#error "no system-call stub for this machine: build with -DNSJOIN_HOSTED"
#endif

/* Named by the man page, so that the code below reads as one. */
#define SYS5(name, a, b, c, d, e) sys(__NR_##name, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e))
#define SYS3(name, a, b, c) SYS5(name, a, b, c, 0, 0)
#define SYS1(name, a) SYS5(name, a, 0, 0, 0, 0)

/* On 32-bit machines the plain names are the calls with 16-bit ids. */
#ifdef __NR_setresuid32
#define SET_UID(uid) SYS3(setresuid32, uid, uid, uid)
#define SET_GID(gid) SYS3(setresgid32, gid, gid, gid)
#define SET_GROUPS(n, groups) SYS3(setgroups32, n, groups, 0)
#else
#define SET_UID(uid) SYS3(setresuid, uid, uid, uid)
#define SET_GID(gid) SYS3(setresgid, gid, gid, gid)
#define SET_GROUPS(n, groups) SYS3(setgroups, n, groups, 0)
#endif

typedef struct nsjoin_plan plan_t;

static void leave(void)
{
    for (;;)
        SYS1(exit_group, 0); /* the report tells what happened, a status could be stolen by another waitpid */
}

static void fail(plan_t *plan, long result)
{
    plan->error = (int32_t)-result;
    leave();
}

static void begin(plan_t *plan, enum nsjoin_step step)
{
    plan->step = (int32_t)step;
    plan->index = 0;
}

static void must(plan_t *plan, long result)
{
    if (result < 0)
        fail(plan, result);
}

static void *at(plan_t *plan, uint32_t offset)
{
    return (char *)plan + offset;
}

/* Points a list of n at the strings that begin at text; returns where the next string begins. */
static char *point(char **list, uint32_t n, char *text)
{
    for (uint32_t i = 0; i < n; i++) {
        list[i] = text;
        while (*text++)
            ;
    }
    list[n] = 0;
    return text;
}

/* The launcher cleared close-on-exec so that these could come through execveat; from here on no program gets them. */
static void take_back(plan_t *plan)
{
    const int32_t *fds = at(plan, plan->lent);
    for (uint32_t i = 0; i < plan->n_lent; i++)
        must(plan, SYS3(fcntl, fds[i], K_F_SETFD, K_FD_CLOEXEC));
}

/* Sources below 3 are lifted first: otherwise installing 0 could overwrite what is to become 1. */
static void stdio(plan_t *plan)
{
    begin(plan, NSJOIN_STEP_STDIO);
    for (int32_t i = 0; i < 3; i++) {
        int32_t source = plan->stdio[i];
        if (source < 0 || source > 2 || source == i)
            continue;
        long lifted = SYS3(fcntl, source, K_F_DUPFD_CLOEXEC, 3);
        must(plan, lifted);
        plan->stdio[i] = (int32_t)lifted;
    }
    for (int32_t i = 0; i < 3; i++) {
        int32_t source = plan->stdio[i];
        plan->index = i;
        if (source == i) /* dup3 refuses it, and close-on-exec has to go */
            must(plan, SYS3(fcntl, source, K_F_SETFD, 0));
        else if (source >= 0)
            must(plan, SYS3(dup3, source, i, 0));
    }
}

static void close_between(unsigned int first, unsigned int last)
{
    if (first > last || SYS3(close_range, first, last, 0) == 0)
        return;
    /* ENOSYS before Linux 5.9, EPERM in a seccomp filter. No /proc here, so up to the limit. */
    struct { uint64_t soft, hard; } limit;
    if (SYS5(prlimit64, 0, K_RLIMIT_NOFILE, 0, &limit, 0) == 0 && last >= limit.soft)
        last = (unsigned int)limit.soft;
    for (unsigned int fd = first; fd <= last; fd++)
        SYS1(close, fd);
}

static void close_descriptors(plan_t *plan)
{
    const int32_t *keep = at(plan, plan->keep);
    unsigned int first = 3;
    begin(plan, NSJOIN_STEP_CLOSE);
    for (uint32_t i = 0; i < plan->n_keep; i++) {
        close_between(first, (unsigned int)keep[i] - 1);
        first = (unsigned int)keep[i] + 1;
    }
    close_between(first, ~0u);
}

/* Before a user namespace is joined, this works for root; after it, where the namespace's /proc/PID/setgroups allows. */
static void drop_groups(plan_t *plan)
{
    begin(plan, NSJOIN_STEP_GROUPS);
    long result = SET_GROUPS(0, 0);
    if (result < 0 && result != -EPERM)
        fail(plan, result);
}

static void join(plan_t *plan)
{
    const struct nsjoin_join *joins = at(plan, plan->joins);
    uint32_t joined = 0;
    begin(plan, NSJOIN_STEP_JOIN);
    for (uint32_t i = 0; i < plan->n_joins; i++) {
        plan->index = (int32_t)i;
        if ((joins[i].how & NSJOIN_AGAIN) && (joined & joins[i].nstypes))
            continue;
        long result = SYS3(setns, joins[i].fd, joins[i].nstypes, 0);
        if (result == 0)
            joined |= joins[i].nstypes;
        else if (!(joins[i].how & NSJOIN_TRY) || result != -EPERM)
            fail(plan, result);
    }
}

/* setns moves to the root of the mount namespace, which is not the root of a process that is chrooted in it. */
static void change_root(plan_t *plan)
{
    static const char here[] = ".";
    begin(plan, NSJOIN_STEP_ROOT);
    must(plan, SYS1(fchdir, plan->root));
    must(plan, SYS1(chroot, here));
}

static void set_id(plan_t *plan, long result, uint32_t try)
{
    if (result != -EINVAL || !(plan->flags & try))
        must(plan, result);
}

static void set_ids(plan_t *plan)
{
    begin(plan, NSJOIN_STEP_IDS);
    if (plan->flags & NSJOIN_SETGROUPS)
        must(plan, SET_GROUPS(plan->n_groups, at(plan, plan->groups)));
    plan->index = 1;
    if (plan->flags & NSJOIN_SETGID)
        set_id(plan, SET_GID(plan->gid), NSJOIN_TRY_GID);
    plan->index = 2;
    if (plan->flags & NSJOIN_SETUID)
        set_id(plan, SET_UID(plan->uid), NSJOIN_TRY_UID);
}

static void default_signal(plan_t *plan, long number)
{
#ifdef NSJOIN_HOSTED
    must(plan, signal((int)number, SIG_DFL) == SIG_ERR ? -errno : 0);
#else
    static const uint64_t default_action[4]; /* SIG_DFL, no flags, no restorer, empty mask */
    must(plan, SYS5(rt_sigaction, number, default_action, 0, K_SIG_BLOCK_SIZE, 0));
#endif
}

/* The process that becomes the program: session, signals, exec. Which error wins is _posixsubprocess's rule. */
static void become(plan_t *plan)
{
    begin(plan, NSJOIN_STEP_SESSION);
    if (plan->flags & NSJOIN_SETSID)
        must(plan, SYS1(setsid, 0));
    if (plan->flags & NSJOIN_SETPGID)
        must(plan, SYS3(setpgid, 0, plan->pgid, 0));
    if (plan->flags & NSJOIN_RESTORE_SIGNALS) {
        default_signal(plan, K_SIGPIPE);
        default_signal(plan, K_SIGXFSZ);
    }
    char **files = at(plan, plan->tables);
    char **argv = files + plan->n_files + 1;
    char **envp = argv + plan->n_argv + 1;
    point(envp, plan->n_envp, point(argv, plan->n_argv, point(files, plan->n_files, at(plan, plan->text))));
    long first = 0, last = -ENOENT;
    begin(plan, NSJOIN_STEP_EXEC);
    /* last of all: a signal that is pending for this process may end it here, as it may any program */
    SYS5(rt_sigprocmask, K_SIG_SETMASK, &plan->sigmask, 0, K_SIG_BLOCK_SIZE, 0);
    for (int32_t i = 0; files[i]; i++) {
        last = SYS3(execve, files[i], argv, envp);
        if (first == 0 && last != -ENOENT && last != -ENOTDIR)
            first = last;
    }
    fail(plan, first ? first : last);
}

/* Only a child is born in the PID namespace that setns named. CLONE_PARENT makes it the caller's child and not ours; the
 * kernel writes its pid, as the caller sees it, into the report before the child runs, so that it is never lost. */
static void bear(plan_t *plan)
{
    const long flags = K_CLONE_VM | K_CLONE_VFORK | K_CLONE_PARENT | K_CLONE_PARENT_SETTID | K_SIGCHLD;
    begin(plan, NSJOIN_STEP_CLONE);
#ifdef NSJOIN_HOSTED
    (void)flags;
    long child = sys(__NR_clone, K_CLONE_PARENT | K_CLONE_PARENT_SETTID | K_SIGCHLD, 0, (long)&plan->pid, 0, 0);
#else
    long child = SYS5(clone, flags, 0, &plan->pid, 0, 0);
#endif
    if (child == 0)
        become(plan);
    must(plan, child);
    leave();
}

/* Root of the target must not trace this process or look into its /proc once it is inside: ptrace(2), proc(5). A change of
 * credentials, as by joining a user namespace, sets this to fs.suid_dumpable, which may be 1. */
static void hide(plan_t *plan)
{
    must(plan, SYS5(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0));
}

static void carry_out(plan_t *plan)
{
    take_back(plan);
    stdio(plan);
    if (plan->flags & NSJOIN_CLOSE_FDS)
        close_descriptors(plan);
    if (plan->flags & NSJOIN_DROP_GROUPS)
        drop_groups(plan);
    join(plan);
    hide(plan);
    if (plan->root >= 0)
        change_root(plan);
    if (plan->cwd) {
        begin(plan, NSJOIN_STEP_CWD);
        must(plan, SYS1(chdir, at(plan, plan->cwd)));
    }
    if (plan->flags & NSJOIN_UMASK) {
        begin(plan, NSJOIN_STEP_UMASK);
        SYS1(umask, plan->umask);
    }
    if (plan->flags & NSJOIN_DROP_GROUPS)
        drop_groups(plan);
    set_ids(plan);
    hide(plan);
    if (plan->flags & NSJOIN_FORK)
        bear(plan);
    become(plan);
}

static plan_t *map_plan(long fd)
{
    plan_t head;
    if (SYS3(read, fd, &head, sizeof head) != (long)sizeof head)
        leave();
#ifdef NSJOIN_HOSTED
    void *plan = mmap(0, head.size, K_PROT_READ_WRITE, K_MAP_SHARED, (int)fd, 0);
    if (plan == MAP_FAILED)
        leave();
#else
    long plan = SYS5(mmap, 0, head.size, K_PROT_READ_WRITE, K_MAP_SHARED, fd);
    if (plan < 0 && plan > -4096)
        leave();
#endif
    return (plan_t *)plan;
}

/* argv is {name, number of the plan's descriptor, NULL}. */
static void start(char **argv)
{
    long fd = 0;
    for (const char *digit = argv[1]; *digit; digit++)
        fd = fd * 10 + (*digit - '0');
    plan_t *plan = map_plan(fd);
    begin(plan, NSJOIN_STEP_PLAN);
    hide(plan);
    carry_out(plan);
    leave();
}

#ifdef NSJOIN_HOSTED
int main(int argc, char **argv)
{
    if (argc == 2)
        start(argv);
    return 0;
}
#else
void nsjoin_start(long *stack);

void nsjoin_start(long *stack)
{
    long argc = stack[0];
    char **argv = (char **)(stack + 1);
    if (argc == 2)
        start(argv);
    leave();
}
#endif
