/* The joiner: the program that runs between the caller and the program asked for.
 *
 * It is started with a plan (struct nsjoin_plan) in a file, does what the plan says in a fixed order, and becomes the
 * program, or, where a PID namespace is joined, leaves a sibling behind that does. It is a program of its own so that
 * nothing of the caller (memory, dumpable flag, signal handlers, executable) is ever inside the target: between the first
 * setns and execve, whatever can see this process sees only what is in this file and those it includes.
 *
 * No libc: raw system calls (syscalls.h), and nothing is parsed but the number of the plan's descriptor and, where it is
 * the target's, the environment.
 *
 * What may be called after the clone in bear_with(): system calls only. The child runs in the joiner's memory and on its
 * stack while the joiner is suspended (CLONE_VM | CLONE_VFORK), so it never returns from there, and the joiner
 * needs nothing of its stack afterwards.
 */
#include "credentials.h"
#include "descriptors.h"

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

/* The environment of another process, read here and not in the caller: pages of its memory may be of a file that never
 * answers, and this process can be killed. */
static void read_environment(plan_t *plan, long fd)
{
    enum { ROOM = 6 << 20 }; /* execve accepts less */
    long used = 0, got, n = 1;
    begin(plan, NSJOIN_STEP_ENV);
    char *text = map(ROOM, 0, -1);
    must(plan, text ? 0 : -ENOMEM);
    /* a start that is tried again, as after a refused CLONE_INTO_CGROUP, finds what the first one has left of it */
    must(plan, SYS3(lseek, fd, 0, 0));
    while ((got = SYS3(read, fd, text + used, ROOM - 1 - used)) > 0)
        used += got;
    must(plan, got < 0 ? got : used == ROOM - 1 ? -E2BIG : 0);
    if (used == 0 && !(plan->flags & NSJOIN_EMPTY_ENVIRON)) /* none, or execve(2) has given it another since it was opened */
        fail(plan, -EAGAIN);
    for (long i = 0; i < used; i++)
        n += !text[i];
    char **entry = map((n + 1) * (long)sizeof *entry, 0, -1);
    must(plan, entry ? 0 : -ENOMEM);
    plan->envp = (uintptr_t)entry;
    for (char *next = text; next < text + used;) { /* a process may have taken the last NUL away; behind it are more */
        if (*next)
            *entry++ = next;
        while (*next++)
            ;
    }
    SYS1(close, fd);
}

/* The file is its process's user's, over whom the caller may have no power; a process that has joined the user namespace
 * may. The directory is of the caller's own /proc. */
static void read_environment_inside(plan_t *plan)
{
    begin(plan, NSJOIN_STEP_ENV);
    long fd = SYS5(openat, plan->environ, "environ", O_RDONLY | O_CLOEXEC, 0, 0);
    must(plan, fd);
    SYS1(close, plan->environ);
    read_environment(plan, fd);
}

/* "0" is the process that writes: cgroups(7). Here, since the caller's credentials are needed, and its descriptors. */
static void enter_cgroups(plan_t *plan)
{
    const int32_t *files = at(plan, plan->cgroups);
    begin(plan, NSJOIN_STEP_CGROUP);
    for (uint32_t i = 0; i < plan->n_cgroups; i++) {
        plan->index = (int32_t)i;
        must(plan, SYS3(write, files[i], "0", 1));
        SYS1(close, files[i]);
    }
}

/* In the /proc that was here before the joins. A file that was mounted over the intended one is not opened. */
static void tell_proc(plan_t *plan, const char *name, const char *text)
{
    static const struct k_open_how how = {O_WRONLY | O_CLOEXEC | O_NONBLOCK, 0, K_RESOLVE_NO_XDEV | K_RESOLVE_NO_MAGICLINKS};
    long length = 0;
    long fd = SYS5(openat2, plan->proc, name, &how, sizeof how, 0);
    if (fd == -ENOSYS || fd == -EPERM) /* before Linux 5.6; a seccomp filter */
        fd = SYS5(openat, plan->proc, name, O_WRONLY | O_CLOEXEC | O_NONBLOCK, 0, 0);
    must(plan, fd);
    while (text[length])
        length++;
    must(plan, SYS3(write, fd, text, length));
    SYS1(close, fd);
}

static void open_proc(plan_t *plan)
{
    begin(plan, plan->oom_score_adj ? NSJOIN_STEP_OOM_SCORE_ADJ : NSJOIN_STEP_LSM_LABEL);
    long fd = SYS5(openat, K_AT_FDCWD, "/proc", O_PATH | O_DIRECTORY | O_CLOEXEC, 0, 0);
    must(plan, fd);
    plan->proc = (int32_t)fd;
}

/* From a directory that has been deleted, which has no path (ENOENT), to the first one above it that has; the first one
 * is open then, else -1. The only way on from it is "..", which is where it was, for the joiner as for the program, and
 * which fails (ENOENT) if that is not below the root of its mount any more. So it is below our root if that directory is.
 * */
static long climb(plan_t *plan, char *path, long size)
{
    static const char here[] = ".", up[] = "..";
    long deleted = -1, result;
    for (int i = 0; (result = SYS3(getcwd, path, size, 0)) == -ENOENT && i < K_PATH_MAX; i++) {
        plan->index = 1;
        if (deleted < 0)
            deleted = SYS5(openat, K_AT_FDCWD, here, O_PATH | O_DIRECTORY | O_CLOEXEC, 0, 0);
        must(plan, deleted);
        must(plan, SYS1(chdir, up));
    }
    must(plan, result);
    return deleted;
}

/* runc's CVE-2024-21626: a directory of the caller's, by a descriptor that leaked or a link in /proc, is no way out. */
static void check_cwd(plan_t *plan)
{
    char path[K_PATH_MAX];
    long deleted = climb(plan, path, sizeof path);
    if (path[0] != '/') /* "(unreachable)": getcwd(2), Linux 2.6.36 */
        fail(plan, -EXDEV);
    if (deleted < 0)
        return;
    must(plan, SYS1(fchdir, deleted));
    SYS1(close, deleted);
}

static void change_cwd(plan_t *plan)
{
    begin(plan, NSJOIN_STEP_CWD);
    if (plan->cwd)
        must(plan, SYS1(chdir, at(plan, plan->cwd)));
    else if (plan->cwd_fd >= 0)
        must(plan, SYS1(fchdir, plan->cwd_fd));
    if (plan->flags & NSJOIN_CHECK_CWD)
        check_cwd(plan);
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

struct attempt { char **argv, **envp; long first, last; };

/* Which error wins is _posixsubprocess's rule. */
static void execute(struct attempt *attempt, const char *file)
{
    attempt->last = SYS3(execve, file, attempt->argv, attempt->envp);
    if (attempt->first == 0 && attempt->last != -ENOENT && attempt->last != -ENOTDIR)
        attempt->first = attempt->last;
}

/* Behind "PATH=" of an environment, or os.defpath. */
static const char *path_of(char **envp)
{
    static const char name[] = "PATH=";
    for (; *envp; envp++) {
        int i = 0;
        while (name[i] && (*envp)[i] == name[i])
            i++;
        if (!name[i])
            return *envp + i;
    }
    return "/bin:/usr/bin";
}

static void search(struct attempt *attempt, const char *name)
{
    char file[K_PATH_MAX];
    const char *path = path_of(attempt->envp);
    for (;; path++) {
        unsigned int length = 0;
        for (; *path && *path != ':'; path++)
            if (length < sizeof file - 1)
                file[length++] = *path;
        if (length && length < sizeof file - 1 && file[length - 1] != '/')
            file[length++] = '/';
        for (const char *from = name; *from && length < sizeof file - 1; from++)
            file[length++] = *from;
        file[length] = 0;
        if (length < sizeof file - 1) /* else it is too long to be a file's name */
            execute(attempt, file);
        if (!*path)
            return;
    }
}

/* The process that becomes the program: session, signals, exec. */
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
    if (plan->lsm_label) {
        begin(plan, NSJOIN_STEP_LSM_LABEL);
        tell_proc(plan, "self/attr/exec", at(plan, plan->lsm_label));
    }
    if (plan->oom_score_adj || plan->lsm_label) /* no link of the target's to /proc/self/fd leads execve there */
        SYS1(close, plan->proc);
    char **files = at(plan, plan->tables);
    char **argv = files + plan->n_files + 1;
    char **envp = argv + plan->n_argv + 1;
    point(envp, plan->n_envp, point(argv, plan->n_argv, point(files, plan->n_files, at(plan, plan->text))));
    struct attempt attempt = {argv, plan->envp ? (char **)(uintptr_t)plan->envp : envp, 0, -ENOENT};
    begin(plan, NSJOIN_STEP_EXEC);
    /* last of all: a signal that is pending for this process may end it here, as it may any program */
    SYS5(rt_sigprocmask, K_SIG_SETMASK, &plan->sigmask, 0, K_SIG_BLOCK_SIZE, 0);
    for (int32_t i = 0; files[i]; i++) {
        if (plan->flags & NSJOIN_SEARCH)
            search(&attempt, files[i]);
        else
            execute(&attempt, files[i]);
    }
    fail(plan, attempt.first ? attempt.first : attempt.last);
}

/* CLONE_PARENT makes it the caller's child, not the joiner's; the kernel writes its pid, as the caller sees it, into the
 * report before the child runs, so that it is never lost. Returns only if there is none. */
static long bear_with(plan_t *plan, long flags)
{
    flags |= K_CLONE_PARENT | K_CLONE_PARENT_SETTID;
    /* clone3 wants no signal with CLONE_PARENT: it is the one that this process itself sends to the caller */
    const struct k_clone_args args = {
        .flags = (uint64_t)flags | K_CLONE_INTO_CGROUP,
        .parent_tid = (uintptr_t)&plan->pid,
        .cgroup = (uint64_t)plan->cgroup,
    };
    long child = plan->cgroup >= 0 ? SYS3(clone3, &args, sizeof args, 0) : CLONE(flags | K_SIGCHLD, &plan->pid);
    if (child == 0)
        become(plan);
    if (child > 0)
        leave();
    return child;
}

/* Only a child is born in the PID namespace that setns named, and in the time namespace that unshare has made. */
static void bear(plan_t *plan)
{
    begin(plan, NSJOIN_STEP_CLONE);
    long result = bear_with(plan, SUSPENDED);
    if (result == -EINVAL) /* before Linux 6.2 a child in another time namespace does not share memory */
        result = bear_with(plan, SUSPENDED & ~K_CLONE_VM);
    fail(plan, result);
}

/* An ordinary user's process that is hidden may not write its own file, which is root's then: proc(5). Nothing is joined
 * yet, so it exposes nothing that the caller does not. */
static void tell_score(plan_t *plan)
{
    must(plan, SYS5(prctl, PR_SET_DUMPABLE, 1, 0, 0, 0));
    tell_proc(plan, "self/oom_score_adj", at(plan, plan->oom_score_adj));
    hide(plan);
}

/* All that needs the caller's descriptors, /proc or groups. */
static void prepare(plan_t *plan)
{
    take_back(plan);
    stdio(plan);
    if (plan->environ >= 0 && !(plan->flags & NSJOIN_ENVIRON_INSIDE))
        read_environment(plan, plan->environ);
    if (plan->n_cgroups)
        enter_cgroups(plan);
    if (plan->flags & NSJOIN_CLOSE_FDS)
        close_descriptors(plan);
    if (plan->oom_score_adj || plan->lsm_label)
        open_proc(plan);
    if (plan->oom_score_adj)
        tell_score(plan);
    if (plan->flags & NSJOIN_GROUPS_FIRST)
        set_groups_first(plan);
    if (plan->flags & NSJOIN_DROP_GROUPS)
        drop_groups(plan);
}

static void unshare(plan_t *plan)
{
    begin(plan, NSJOIN_STEP_UNSHARE);
    must(plan, SYS1(unshare, plan->unshare));
    plan->index = 1;
    if (plan->unshare & K_CLONE_NEWNS) /* else what is mounted there would come out again: mount_namespaces(7) */
        must(plan, SYS5(mount, "none", "/", 0, K_MS_REC | K_MS_PRIVATE, 0));
}

/* Root, working directory, new namespaces. unshare comes last: a new mount namespace keeps the root and directory that are
 * current. */
static void settle(plan_t *plan)
{
    if (plan->root >= 0)
        change_root(plan);
    change_cwd(plan);
    if (plan->unshare)
        unshare(plan);
    if (plan->flags & NSJOIN_UMASK) {
        begin(plan, NSJOIN_STEP_UMASK);
        SYS1(umask, plan->umask);
    }
}

static void carry_out(plan_t *plan)
{
    prepare(plan);
    join(plan, 0);
    if (plan->flags & NSJOIN_ENVIRON_INSIDE)
        read_environment_inside(plan);
    settle(plan);
    set_credentials(plan);
    hide(plan);
    if (plan->flags & NSJOIN_FORK)
        bear(plan);
    become(plan);
}

static plan_t *map_plan(long fd)
{
    plan_t head;
    /* read(2): where it is a pipe without a writer's data, this holds a namespace until the other end is closed (hold.c) */
    if (SYS3(read, fd, &head, sizeof head) != (long)sizeof head)
        leave();
    plan_t *plan = map(head.size, 1, fd);
    if (!plan)
        leave();
    return plan;
}

/* argv is {name, number of the plan's descriptor, NULL}, or one more where there will be no plan. */
static void start(char **argv)
{
    /* the init of a new PID namespace (hold.c) stays in map_plan: no process inside may look into it, or go to the
     * directory of /proc that it may have been started in */
    if (argv[2] && (SYS5(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0) < 0 || SYS1(chdir, "/") < 0))
        leave();
    plan_t *plan = map_plan(number(argv[1]));
    hide(plan);
    carry_out(plan);
    leave();
}

#ifdef NSJOIN_HOSTED
int main(int argc, char **argv)
{
    if (argc >= 2)
        start(argv);
    return 0;
}
#else
void nsjoin_start(long *stack);

void nsjoin_start(long *stack)
{
    long argc = stack[0];
    char **argv = (char **)(stack + 1);
    if (argc >= 2)
        start(argv);
    leave();
}
#endif
