/* The joiner: the program that runs between the caller and the program asked for.
 *
 * It is started with a plan (struct nsjoin_plan) in a file, does what the plan says in a fixed order, and becomes the
 * program, or, where a PID namespace is joined, leaves a sibling behind that does. It is a program of its own so that
 * nothing of the caller (memory, dumpable flag, signal handlers, executable) is ever inside the target: between the first
 * setns and execve, whatever can see this process sees only what is in this file.
 *
 * No libc: raw system calls (syscalls.h), and nothing is parsed but the number of the plan's descriptor and, where it is
 * the target's, the environment.
 *
 * What may be called after the clone in bear_with(): system calls only. The child runs in the joiner's memory and on its
 * stack while the joiner is suspended (CLONE_VM | CLONE_VFORK), so it never returns from there, and the joiner
 * needs nothing of its stack afterwards.
 */
#include "shared.h"
#include "syscalls.h"

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

static long number(const char *digit)
{
    long value = 0;
    for (; *digit; digit++)
        value = value * 10 + (*digit - '0');
    return value;
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
    begin(plan, NSJOIN_STEP_PLAN);
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

/* The environment of another process, read here and not in the caller: pages of its memory may be of a file that never
 * answers, and this process can be killed. */
static void read_environment(plan_t *plan, long fd)
{
    enum { ROOM = 6 << 20 }; /* more than this execve takes from nobody */
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

/* The file is its process's user's, whom the caller has no power over; whoever has joined the user namespace may have. The
 * directory is of the caller's own /proc. */
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

/* In the /proc that was here before the joins. A file that somebody has mounted over the one meant is not taken. */
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

static int is_kept(plan_t *plan, long fd)
{
    const int32_t *keep = at(plan, plan->keep);
    for (uint32_t i = 0; i < plan->n_keep; i++)
        if (keep[i] == fd)
            return 1;
    return fd < 3;
}

/* Every descriptor that /proc lists, which no limit hides: 0, or -errno. */
static long close_listed(plan_t *plan)
{
    char buffer[1024] __attribute__((aligned(8)));
    long got;
    long list = SYS5(openat, K_AT_FDCWD, "/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0, 0);
    if (list < 0)
        return list;
    while ((got = SYS3(getdents64, list, buffer, sizeof buffer)) > 0) {
        for (long at = 0; at < got; at += ((struct k_dirent *)(buffer + at))->length) {
            const char *digit = ((struct k_dirent *)(buffer + at))->name;
            if (*digit == '.')
                continue;
            long fd = number(digit);
            if (fd != list && !is_kept(plan, fd))
                SYS1(close, fd);
        }
    }
    SYS1(close, list);
    return got;
}

static void close_up_to_limit(plan_t *plan)
{
    struct { uint64_t soft, hard; } limit;
    must(plan, SYS5(prlimit64, 0, K_RLIMIT_NOFILE, 0, &limit, 0));
    for (long fd = 3; (uint64_t)fd < limit.soft; fd++)
        if (!is_kept(plan, fd))
            SYS1(close, fd);
}

static void close_descriptors(plan_t *plan)
{
    const int32_t *keep = at(plan, plan->keep);
    unsigned int first = 3;
    long result = 0;
    begin(plan, NSJOIN_STEP_CLOSE);
    for (uint32_t i = 0; i < plan->n_keep && result == 0; i++) {
        if (first < (unsigned int)keep[i])
            result = SYS3(close_range, first, (unsigned int)keep[i] - 1, 0);
        first = (unsigned int)keep[i] + 1;
    }
    if (result == 0)
        result = SYS3(close_range, first, ~0u, 0);
    /* ENOSYS before Linux 5.9, EPERM in a seccomp filter; and there may be no /proc here */
    if (result < 0 && close_listed(plan) < 0)
        close_up_to_limit(plan);
}

/* Before a user namespace is joined, this works for root; after it, where the namespace's /proc/PID/setgroups allows. */
static void drop_groups(plan_t *plan)
{
    begin(plan, NSJOIN_STEP_GROUPS);
    long result = SET_GROUPS(0, 0);
    if (result < 0 && result != -EPERM)
        fail(plan, result);
}

static void set_groups_first(plan_t *plan)
{
    begin(plan, NSJOIN_STEP_GROUPS);
    must(plan, SET_GROUPS(plan->n_groups, at(plan, plan->groups)));
}

/* Root of the target must not trace this process or look into its /proc once it is inside: ptrace(2), proc(5). A change of
 * credentials, as by joining a user namespace, sets this to fs.suid_dumpable, which may be 1. */
static void hide(plan_t *plan)
{
    begin(plan, NSJOIN_STEP_HIDE);
    must(plan, SYS5(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0));
}

/* Whoever leaves a user namespace never comes back: if the target is still in this one, all that was joined belongs to it.
 * Otherwise it could leave between the caller's look and setns, and have us in its mount namespace with all our power. */
static void check_user(plan_t *plan)
{
    struct k_statx found;
    begin(plan, NSJOIN_STEP_WITNESS);
    long fd = SYS3(ioctl, plan->witness, _IO(0xff, 9), 0); /* PIDFD_GET_USER_NAMESPACE, Linux 6.11 */
    must(plan, fd);
    plan->index = 1;
    must(plan, SYS5(statx, fd, "", K_AT_EMPTY_PATH, K_STATX_INO, &found));
    SYS1(close, fd);
    if (found.inode != plan->user)
        fail(plan, -EAGAIN);
}

static void join(plan_t *plan)
{
    const struct nsjoin_join *joins = at(plan, plan->joins);
    uint32_t joined = 0;
    for (uint32_t i = 0; i < plan->n_joins; i++) {
        begin(plan, NSJOIN_STEP_JOIN);
        plan->index = (int32_t)i;
        if ((joins[i].how & NSJOIN_AGAIN) && (joined & joins[i].nstypes))
            continue;
        long result = SYS3(setns, joins[i].fd, joins[i].nstypes, 0);
        if (result < 0 && (result != -EPERM || !(joins[i].how & NSJOIN_TRY)))
            fail(plan, result);
        if (result == 0) {
            joined |= joins[i].nstypes;
            hide(plan);
        }
    }
    if (plan->witness >= 0)
        check_user(plan);
}

/* setns moves to the root of the mount namespace, which is not the root of a process that is chrooted in it. */
static void change_root(plan_t *plan)
{
    static const char here[] = ".";
    begin(plan, NSJOIN_STEP_ROOT);
    must(plan, SYS1(fchdir, plan->root));
    plan->index = 1;
    must(plan, SYS1(chroot, here));
}

/* From a directory that has been deleted, which has no path (ENOENT), to the first one above it that has; the first one is
 * open then, else -1. The only way on from it is "..", which is where it was, for us as for the program, and which fails
 * (ENOENT) if that is not below the root of its mount any more. So it is below our root if that directory is. */
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

/* runc's CVE-2024-21626: a directory of ours, by a descriptor that leaked or a link in /proc, is no way out. */
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

static long get_capabilities(struct k_cap_data data[2])
{
    struct k_cap_header head = {K_CAPABILITY_VERSION_3, 0};
    return SYS3(capget, &head, data, 0);
}

static long set_capabilities(uint64_t effective, uint64_t permitted, uint64_t inheritable)
{
    struct k_cap_header head = {K_CAPABILITY_VERSION_3, 0};
    const struct k_cap_data data[2] = {
        {(uint32_t)effective, (uint32_t)permitted, (uint32_t)inheritable},
        {(uint32_t)(effective >> 32), (uint32_t)(permitted >> 32), (uint32_t)(inheritable >> 32)},
    };
    return SYS3(capset, &head, data, 0);
}

/* What needs CAP_SETPCAP, which a change of ids may take away. Nothing can be added to the bounding set: capabilities(7).
 * The inheritable set first, since it may hold what the bounding set does not. */
static void bound_capabilities(plan_t *plan)
{
    struct k_cap_data now[2];
    begin(plan, NSJOIN_STEP_BOUNDING);
    plan->index = -1;
    must(plan, get_capabilities(now));
    must(plan, set_capabilities(now[0].effective | (uint64_t)now[1].effective << 32,
                                now[0].permitted | (uint64_t)now[1].permitted << 32, plan->inheritable));
    for (int32_t i = 0; i < 64; i++) {
        long have = SYS5(prctl, PR_CAPBSET_READ, i, 0, 0, 0);
        if (have < 0) /* EINVAL: behind the last one that the kernel knows */
            break;
        long wanted = (long)(plan->bounding >> i & 1);
        plan->index = i;
        if (have != wanted)
            must(plan, wanted ? -EPERM : SYS5(prctl, PR_CAPBSET_DROP, i, 0, 0, 0));
    }
    plan->index = -2;
    must(plan, SYS5(prctl, PR_SET_KEEPCAPS, 1, 0, 0, 0)); /* until exec: what is permitted outlasts a change of ids */
}

static void become_capable(plan_t *plan)
{
    struct k_cap_data now[2];
    begin(plan, NSJOIN_STEP_CAPABILITIES);
    plan->index = -1;
    must(plan, get_capabilities(now));
    uint64_t missing = plan->permitted & ~(now[0].permitted | (uint64_t)now[1].permitted << 32);
    for (int32_t i = 0; i < 64 && missing; i++) {
        plan->index = i;
        must(plan, missing >> i & 1 ? -EPERM : 0);
    }
    must(plan, set_capabilities(plan->effective, plan->permitted, plan->inheritable));
    plan->index = -2;
    must(plan, SYS5(prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0));
    for (int32_t i = 0; i < 64; i++) {
        plan->index = 64 + i;
        if (plan->ambient >> i & 1)
            must(plan, SYS5(prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, i, 0, 0));
    }
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
        set_id(plan, SET_GIDS(plan->gids), NSJOIN_TRY_GID);
    plan->index = 2;
    if (plan->flags & NSJOIN_SETUID)
        set_id(plan, SET_UIDS(plan->uids), NSJOIN_TRY_UID);
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

/* Behind "PATH=" of an environment, or what os.defpath says. */
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

/* CLONE_PARENT makes it the caller's child and not ours; the kernel writes its pid, as the caller sees it, into the report
 * before the child runs, so that it is never lost. Returns only if there is none. */
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
 * yet, so it shows to nobody what the caller does not. */
static void tell_score(plan_t *plan)
{
    must(plan, SYS5(prctl, PR_SET_DUMPABLE, 1, 0, 0, 0));
    tell_proc(plan, "self/oom_score_adj", at(plan, plan->oom_score_adj));
    hide(plan);
}

/* All that needs what is still ours: descriptors, /proc, groups. */
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

/* Where in the target. New namespaces after root and cwd: what a new mount namespace copies is where one is. */
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

/* Keys in the caller's session keyring are the program's by possession: keyrings(7). */
static void new_keyring(plan_t *plan)
{
    begin(plan, NSJOIN_STEP_KEYRING);
    long result = SYS3(keyctl, K_JOIN_SESSION_KEYRING, 0, 0);
    if (result != -ENOSYS && result != -EPERM) /* no keys in this kernel; a seccomp filter, as most containers have */
        must(plan, result);
}

/* As whom. */
static void set_credentials(plan_t *plan)
{
    if (plan->flags & NSJOIN_NEW_KEYRING)
        new_keyring(plan);
    if (plan->flags & NSJOIN_DROP_GROUPS)
        drop_groups(plan);
    if (plan->flags & NSJOIN_CAPABILITIES)
        bound_capabilities(plan);
    set_ids(plan);
    if (plan->flags & NSJOIN_CAPABILITIES)
        become_capable(plan);
    if (plan->flags & NSJOIN_NO_NEW_PRIVS) {
        begin(plan, NSJOIN_STEP_NO_NEW_PRIVS);
        must(plan, SYS5(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    }
}

static void carry_out(plan_t *plan)
{
    prepare(plan);
    join(plan);
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
    /* read(2): where it is a pipe that nobody writes to, this holds a namespace until the other end is closed (_create.py) */
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
    /* the init of a new PID namespace (_create.py) stays in map_plan: nobody inside looks into it, or goes to the directory
     * of /proc that it may have been started in */
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
