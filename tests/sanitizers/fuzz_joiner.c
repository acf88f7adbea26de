/* libFuzzer: the joiner with any plan, on a kernel of this file's own that refuses what it likes.
 *
 * The plan has the layout that _pack.py gives it, and ends where its memory ends, for ASan. The kernel keeps a table of
 * descriptors, and at execve holds against it what the joiner promises:
 *   - after a refusal that no rule forgives, no program is executed, and the report names that errno;
 *   - the program gets the files, arguments and environment of the plan, and as 0, 1, 2 what the plan says;
 *   - of the other descriptors, those it is to keep; never a lent one; and none that the joiner opened is open still;
 *   - each setns is followed by prctl(PR_SET_DUMPABLE, 0), which holds at clone and execve, and after the first setns no
 *     file is opened by a path from the working directory or the root;
 *   - no other system call is made than those named here.
 */
#define NSJOIN_HOSTED
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
static long fake_syscall(long number, ...);
static void *fake_mmap(void *at, size_t size, int protection, int flags, int fd, long offset);
#define syscall fake_syscall
#define mmap fake_mmap
#define main joiner_main
#include "_c/joiner.c"
#undef syscall
#undef mmap
#undef main
#include <stdarg.h>

#define CHECK(what) ((what) ? (void)0 : wrong(__LINE__, #what))
enum { FDS = 64, MOST = 8, PLAN_FD = 40, NEW_FD = 48, STRINGS = 16, MOST_ENVIRON = (6 << 20) - 2 };

static const uint8_t *bytes;
static size_t n_bytes;
static jmp_buf end;
static char *plan_file; /* what the joiner gets, so long */
static uint32_t plan_size;
static plan_t *plan;
static struct { int is_open, is_cloexec, object; } fds[FDS];
static int32_t lent[MOST], keep[MOST];
static int n_lent, n_keep, stdio_objects[3];
static struct strings { char *texts[STRINGS]; int n; } files, arguments, environment;
static struct { void *at[8]; int n; } maps;
static int fatal;  /* errno of a refusal that no rule forgives */
static int denied; /* errno of what the joiner itself has to find wrong */
static char *environ_text, *paths[4096];
static size_t environ_size, environ_read;
static int n_paths, path, forgiven_exec, forgiven_clone, is_hidden, must_hide, has_joined, has_cloned, has_run, lists;

static void wrong(int line, const char *what)
{
    fprintf(stderr, "fuzz_joiner.c:%d: not so: %s\n", line, what);
    abort();
}

static unsigned int next(void)
{
    return n_bytes ? (n_bytes--, *bytes++) : 0;
}

static unsigned int below(unsigned int limit)
{
    return next() % limit;
}

/* --- the plan ----------------------------------------------------------------------------------------------------- */

static void put(const void *data, size_t size)
{
    plan_file = realloc(plan_file, plan_size + size);
    memcpy(plan_file + plan_size, data, size);
    plan_size += (uint32_t)size;
}

static uint32_t put_numbers(const int32_t *numbers, int n)
{
    uint32_t offset = plan_size;
    put(numbers, sizeof *numbers * (size_t)n);
    return offset;
}

/* Of any length up to some that no path may have. */
static char *some_text(void)
{
    unsigned int length = below(8) ? below(12) : next() * 20;
    char *text = malloc(length + 1);
    for (unsigned int i = 0; i < length; i++)
        text[i] = "/:a=PATH.~"[i < 12 ? below(10) : 2 + i % 8];
    text[length] = 0;
    return text;
}

static void make_strings(struct strings *strings, unsigned int n)
{
    for (strings->n = 0; strings->n < (int)n; strings->n++)
        strings->texts[strings->n] = some_text();
}

static void free_strings(struct strings *strings)
{
    for (int i = 0; i < strings->n; i++)
        free(strings->texts[i]);
}

static void make_lists(void)
{
    static const char path_of_environment[] = "PATH=";
    make_strings(&files, 1 + below(3));
    make_strings(&arguments, 1 + below(4));
    make_strings(&environment, below(5));
    for (int i = 0; i < environment.n; i++)
        if (strlen(environment.texts[i]) >= 5 && below(2))
            memcpy(environment.texts[i], path_of_environment, 5);
}

static int32_t some_fd(void)
{
    return below(3) ? 3 + (int32_t)below(PLAN_FD - 3) : -1; /* what the launcher opens is above stdio */
}

static void make_numbers(plan_t *head)
{
    int32_t numbers[3 * MOST];
    n_lent = (int)below(MOST + 1);
    for (int i = 0; i < n_lent; i++)
        lent[i] = 3 + (int32_t)below(PLAN_FD - 3);
    head->lent = put_numbers(lent, n_lent);
    head->n_lent = (uint32_t)n_lent;
    n_keep = 0;
    for (int32_t fd = 3; n_keep < MOST && fd < PLAN_FD; fd++)
        if (!below(5))
            keep[n_keep++] = fd;
    head->keep = put_numbers(keep, n_keep);
    head->n_keep = (uint32_t)n_keep;
    head->n_joins = below(MOST);
    for (uint32_t i = 0; i < head->n_joins; i++) {
        numbers[3 * i] = 3 + (int32_t)below(PLAN_FD - 3);
        numbers[3 * i + 1] = (int32_t)(1u << below(8) | 1u << below(8));
        numbers[3 * i + 2] = (int32_t)below(4);
    }
    head->joins = put_numbers(numbers, 3 * (int)head->n_joins);
    head->n_cgroups = below(3);
    for (uint32_t i = 0; i < head->n_cgroups; i++)
        numbers[i] = 3 + (int32_t)below(PLAN_FD - 3);
    head->cgroups = put_numbers(numbers, (int)head->n_cgroups);
    head->n_groups = below(MOST);
    head->groups = put_numbers(numbers, (int)head->n_groups);
}

static void make_fields(plan_t *head)
{
    head->flags = (next() | next() << 8 | next() << 16) & 0xfffff;
    for (int i = 0; i < 3; i++)
        head->stdio[i] = below(2) ? (int32_t)below(6) : -1;
    head->root = some_fd();
    head->witness = some_fd();
    head->user = 7;
    head->environ = some_fd();
    head->cwd_fd = some_fd();
    head->cgroup = some_fd();
    head->unshare = below(2) ? K_CLONE_NEWNS | next() : 0;
    head->bounding = head->permitted = next();
    head->effective = head->ambient = next();
    if (head->environ < 0)
        head->flags &= ~(uint32_t)NSJOIN_ENVIRON_INSIDE;
}

static uint32_t put_text(const char *text)
{
    uint32_t offset = plan_size;
    put(text, strlen(text) + 1);
    return offset;
}

static void put_strings(const struct strings *strings)
{
    for (int i = 0; i < strings->n; i++)
        put_text(strings->texts[i]);
}

static void make_plan(void)
{
    plan_t head = {0};
    static const char zeros[(3 * STRINGS + 3) * sizeof(void *)];
    plan_file = 0;
    plan_size = 0;
    make_lists();
    put(&head, sizeof head);
    head.tables = plan_size;
    put(zeros, (size_t)(files.n + arguments.n + environment.n + 3) * sizeof(void *));
    make_numbers(&head);
    make_fields(&head);
    head.n_files = (uint32_t)files.n, head.n_argv = (uint32_t)arguments.n, head.n_envp = (uint32_t)environment.n;
    head.text = plan_size;
    put_strings(&files);
    put_strings(&arguments);
    put_strings(&environment);
    head.oom_score_adj = below(4) ? 0 : put_text("-1000");
    head.lsm_label = below(4) ? 0 : put_text("exec label");
    head.cwd = below(2) ? 0 : put_text("/somewhere");
    head.size = plan_size;
    memcpy(plan_file, &head, sizeof head);
}

/* --- the table of descriptors ------------------------------------------------------------------------------------- */

static void open_descriptors(void)
{
    plan_t head;
    memcpy(&head, plan_file, sizeof head);
    for (int fd = 0; fd < FDS; fd++) {
        fds[fd].is_open = fd < PLAN_FD ? below(16) != 1 : fd < NEW_FD;
        fds[fd].is_cloexec = fd == PLAN_FD || (fd < PLAN_FD && below(2));
        fds[fd].object = fd;
    }
    fds[PLAN_FD].is_open = 1;
    for (int i = 0; i < n_lent; i++)
        fds[lent[i]].is_cloexec = 0; /* so the launcher leaves them */
    for (int i = 0; i < 3; i++) {
        stdio_objects[i] = head.stdio[i] >= 0 ? head.stdio[i] : i;
        fds[stdio_objects[i]].is_open |= head.stdio[i] >= 0; /* Popen looks: a lifted one could get that number */
    }
}

static int is_open(long fd)
{
    return fd >= 0 && fd < FDS && fds[fd].is_open;
}

static long new_fd(long lowest, int is_cloexec, int object)
{
    for (long fd = lowest; fd < FDS; fd++)
        if (!fds[fd].is_open) {
            fds[fd].is_open = 1, fds[fd].is_cloexec = is_cloexec, fds[fd].object = object;
            return fd;
        }
    return -EMFILE;
}

static int is_among(long fd, const int32_t *numbers, int n)
{
    for (int i = 0; i < n; i++)
        if (numbers[i] == fd)
            return 1;
    return 0;
}

static void check_descriptors(void)
{
    for (int fd = 0; fd < 3; fd++)
        if (plan->flags & NSJOIN_CLOSE_FDS || stdio_objects[fd] != fd)
            CHECK(!fds[fd].is_open || fds[fd].object == stdio_objects[fd]);
    for (int fd = 3; fd < FDS; fd++) {
        CHECK(!fds[fd].is_open || fds[fd].object != NEW_FD);
        if (!fds[fd].is_open || fds[fd].is_cloexec)
            continue;
        CHECK(!is_among(fd, lent, n_lent));
        CHECK(!(plan->flags & NSJOIN_CLOSE_FDS) || is_among(fd, keep, n_keep));
    }
}

/* --- what is executed --------------------------------------------------------------------------------------------- */

static void expect_path(char *one)
{
    CHECK(n_paths < (int)(sizeof paths / sizeof *paths));
    paths[n_paths++] = one;
}

static void add_path(const char *directory, size_t length, const char *name)
{
    char *one = malloc(length + strlen(name) + 2);
    memcpy(one, directory, length);
    one[length] = 0;
    if (length && directory[length - 1] != '/')
        strcat(one, "/");
    strcat(one, name);
    if (strlen(one) < K_PATH_MAX - 1)
        expect_path(one);
    else
        free(one);
}

static void expect_paths(char *const *envp)
{
    const char *found = "/bin:/usr/bin";
    for (int i = 0; envp[i]; i++)
        if (strncmp(envp[i], "PATH=", 5) == 0) {
            found = envp[i] + 5;
            break;
        }
    for (int i = 0; i < files.n; i++) {
        if (!(plan->flags & NSJOIN_SEARCH)) {
            expect_path(strdup(files.texts[i]));
            continue;
        }
        for (const char *from = found;; from += strcspn(from, ":") + 1) {
            add_path(from, strcspn(from, ":"), files.texts[i]);
            if (!from[strcspn(from, ":")])
                break;
        }
    }
}

static void check_environment(char *const *envp)
{
    int n = 0;
    if (plan->environ < 0) {
        for (; envp[n]; n++)
            CHECK(n < environment.n && strcmp(envp[n], environment.texts[n]) == 0);
        CHECK(n == environment.n);
        return;
    }
    for (size_t at = 0; at < environ_size; at += strlen(environ_text + at) + 1)
        if (environ_text[at])
            CHECK(envp[n] && strcmp(envp[n], environ_text + at) == 0 && ++n);
    CHECK(!envp[n]);
}

static long executed(const char *file, char *const *argv, char *const *envp)
{
    int n = 0;
    CHECK(is_hidden);
    check_descriptors();
    for (; argv[n]; n++)
        CHECK(n < arguments.n && strcmp(argv[n], arguments.texts[n]) == 0);
    CHECK(n == arguments.n);
    check_environment(envp);
    if (path == 0)
        expect_paths(envp);
    CHECK(path < n_paths && strcmp(file, paths[path]) == 0);
    path++;
    if (below(4) == 0) {
        has_run = 1;
        longjmp(end, 1);
    }
    static const int errors[] = {ENOENT, ENOTDIR, EACCES, ENOEXEC, E2BIG, ETXTBSY};
    int error = errors[below(6)];
    if (forgiven_exec == 0 || forgiven_exec == ENOENT || forgiven_exec == ENOTDIR)
        forgiven_exec = error;
    return -error;
}

/* --- the kernel --------------------------------------------------------------------------------------------------- */

/* ASan sees whether it is all there. */
static void touch(const void *data, long size)
{
    for (long i = 0; i < size; i++)
        (void)((const volatile unsigned char *)data)[i];
}

static void touch_text(const char *text)
{
    touch(text, (long)strlen(text) + 1);
}

static long opened(long directory, const char *name, long flags)
{
    touch_text(name);
    CHECK(!has_joined || (directory != K_AT_FDCWD && name[0] != '/'));
    CHECK(flags & O_CLOEXEC);
    if (directory != K_AT_FDCWD && !is_open(directory))
        return -EBADF;
    return below(12) == 0 ? -ENOENT : new_fd(NEW_FD, 1, NEW_FD);
}

static long listed(char *buffer, long room)
{
    long used = 0;
    if (lists++ > 3)
        return 0;
    for (int fd = 2 + 16 * (lists - 1); fd < 2 + 16 * lists && fd < FDS; fd++) {
        char name[8];
        snprintf(name, sizeof name, fd == 2 ? ".." : "%d", fd);
        long length = (long)(sizeof(struct k_dirent) + 8 + strlen(name)) & ~7L;
        CHECK(used + length <= room);
        if (fd != 2 && !fds[fd].is_open)
            continue;
        struct k_dirent *entry = (struct k_dirent *)(buffer + used);
        *entry = (struct k_dirent){.length = (uint16_t)length};
        memcpy(entry->name, name, strlen(name) + 1);
        used += length;
    }
    return used ? used : listed(buffer, room);
}

static long read_some(char *to, long room)
{
    size_t left = environ_size - environ_read;
    size_t n = left < 100 || left > 4096 ? left : 1 + below(200);
    n = n > left ? left : n;
    n = n > (size_t)room ? (size_t)room : n;
    if (environ_size == 0 && !(plan->flags & NSJOIN_EMPTY_ENVIRON))
        denied = EAGAIN;
    if (environ_size > MOST_ENVIRON)
        denied = E2BIG;
    memcpy(to, environ_text + environ_read, n);
    environ_read += n;
    return (long)n;
}

/* What is asked of descriptors, by number. */
static long of_descriptor(long number, long a, long b, long c)
{
    switch (number) {
    case __NR_fcntl:
        if (!is_open(a))
            return -EBADF;
        if (b == K_F_DUPFD_CLOEXEC)
            return new_fd(c, 1, fds[a].object);
        CHECK(b == K_F_SETFD);
        fds[a].is_cloexec = (int)c;
        return 0;
    case __NR_dup3:
        if (!is_open(a))
            return -EBADF;
        CHECK(a != b && c == 0);
        fds[b].is_open = 1, fds[b].is_cloexec = 0, fds[b].object = fds[a].object;
        return b;
    case __NR_close_range:
        for (long fd = a; fd <= b && fd < FDS; fd++)
            fds[fd].is_open = 0;
        return 0;
    default: /* close */
        if (!is_open(a))
            return -EBADF;
        fds[a].is_open = 0;
        return 0;
    }
}

static long of_file(long number, long a, long b, long c)
{
    switch (number) {
    case __NR_openat:
        return opened(a, (char *)b, c);
    case __NR_openat2:
        return opened(a, (char *)b, (long)((struct k_open_how *)c)->flags);
    case __NR_getdents64:
        return is_open(a) ? listed((char *)b, c) : -EBADF;
    case __NR_read:
        if (a == PLAN_FD) {
            memcpy((void *)b, plan_file, (size_t)c);
            return c;
        }
        return is_open(a) ? read_some((char *)b, c) : -EBADF;
    case __NR_lseek:
        environ_read = 0;
        return is_open(a) ? 0 : -EBADF;
    default: /* write */
        touch((void *)b, c);
        return is_open(a) ? c : -EBADF;
    }
}

static long of_place(long number, long a, long b)
{
    switch (number) {
    case __NR_fchdir:
        return is_open(a) ? 0 : -EBADF;
    case __NR_chroot:
    case __NR_chdir:
        touch_text((char *)a);
        return 0;
    case __NR_mount:
        touch_text((char *)b);
        return 0;
    case __NR_unshare:
    case __NR_umask:
        return 0;
    default: /* getcwd */
        CHECK(b == K_PATH_MAX);
        strcpy((char *)a, below(4) ? "/inside" : "(unreachable)/");
        if (*(char *)a != '/')
            denied = EXDEV;
        return (long)strlen((char *)a) + 1;
    }
}

static long of_namespace(long number, long a, long e)
{
    switch (number) {
    case __NR_setns:
        if (!is_open(a))
            return -EBADF;
        has_joined = must_hide = 1;
        is_hidden = 0;
        return 0;
    case __NR_ioctl:
        return is_open(a) ? new_fd(NEW_FD, 1, NEW_FD) : -EBADF;
    default: /* statx */
        CHECK(is_open(a));
        ((struct k_statx *)e)->inode = plan->user;
        if (below(8) == 1) {
            ((struct k_statx *)e)->inode++;
            denied = EAGAIN;
        }
        return 0;
    }
}

static long of_credentials(long number, long a, long b)
{
    switch (number) {
    case __NR_capget: {
        struct k_cap_data *data = (void *)b;
        data[0] = data[1] = (struct k_cap_data){next(), next(), next()};
        if (plan->step == NSJOIN_STEP_CAPABILITIES && plan->permitted & ~(uint64_t)data[0].permitted)
            denied = EPERM;
        return 0;
    }
    case __NR_capset:
        touch((void *)b, 2 * sizeof(struct k_cap_data));
        return 0;
    case __NR_setgroups:
        touch((void *)b, 4 * a);
        return 0;
    case __NR_prctl:
        if (a == PR_CAPBSET_READ) {
            long have = b > 40 ? -EINVAL : below(8) != 7;
            if (have == 0 && plan->bounding >> b & 1)
                denied = EPERM;
            return have;
        }
        if (a == PR_SET_DUMPABLE)
            is_hidden = !b, must_hide = 0;
        return 0;
    default: /* setresuid, setresgid: a change of credentials shows the process again */
        is_hidden = 0;
        return 0;
    }
}

static long of_process(long number, long b, long d)
{
    switch (number) {
    case __NR_exit_group:
        longjmp(end, 1);
    case __NR_clone:
    case __NR_clone3:
        CHECK(is_hidden);
        has_cloned = 1;
        return below(2) ? 0 : 1234;
    case __NR_prlimit64:
        ((uint64_t *)d)[0] = FDS;
        return 0;
    case __NR_rt_sigprocmask:
        touch((void *)b, 8);
        return 0;
    default: /* setsid, setpgid, keyctl */
        return 0;
    }
}

static long answer(long number, long a, long b, long c, long d, long e)
{
    switch (number) {
    case __NR_fcntl: case __NR_dup3: case __NR_close: case __NR_close_range:
        return of_descriptor(number, a, b, c);
    case __NR_openat: case __NR_openat2: case __NR_getdents64: case __NR_read: case __NR_lseek: case __NR_write:
        return of_file(number, a, b, c);
    case __NR_fchdir: case __NR_chdir: case __NR_chroot: case __NR_mount: case __NR_unshare: case __NR_umask: case __NR_getcwd:
        return of_place(number, a, b);
    case __NR_setns: case __NR_ioctl: case __NR_statx:
        return of_namespace(number, a, e);
    case __NR_capget: case __NR_capset: case __NR_setgroups: case __NR_prctl: case __NR_setresuid: case __NR_setresgid:
        return of_credentials(number, a, b);
    case __NR_exit_group: case __NR_clone: case __NR_clone3: case __NR_prlimit64: case __NR_rt_sigprocmask:
    case __NR_setsid: case __NR_setpgid: case __NR_keyctl:
        return of_process(number, b, d);
    case __NR_execve:
        return executed((char *)a, (char **)b, (char **)c);
    default:
        wrong(__LINE__, "a system call that the joiner may make");
        return 0;
    }
}

/* Refusals that the joiner is to go on after. */
static int is_forgiven(long number, long a, long b, long error)
{
    int is_try = plan && plan->step == NSJOIN_STEP_IDS && error == -EINVAL;
    switch (number) {
    case __NR_execve: case __NR_close: case __NR_umask: case __NR_rt_sigprocmask: case __NR_close_range:
        return 1; /* the last: it falls back, and what it leaves is seen at execve */
    case __NR_openat: case __NR_getdents64:
        return plan && plan->step == NSJOIN_STEP_CLOSE;
    case __NR_openat2:
        return error == -ENOSYS || error == -EPERM;
    case __NR_setgroups:
        return plan->step == NSJOIN_STEP_GROUPS && b == 0 && error == -EPERM; /* no list: to drop them */
    case __NR_setns: {
        const struct nsjoin_join *joins = (void *)((char *)plan + plan->joins);
        return error == -EPERM && (joins[plan->index].how & NSJOIN_TRY);
    }
    case __NR_setresuid:
        return is_try && (plan->flags & NSJOIN_TRY_UID);
    case __NR_setresgid:
        return is_try && (plan->flags & NSJOIN_TRY_GID);
    case __NR_keyctl:
        return error == -ENOSYS || error == -EPERM;
    case __NR_clone: case __NR_clone3:
        return error == -EINVAL && !forgiven_clone++; /* once more, without CLONE_VM */
    case __NR_prctl:
        return a == PR_CAPBSET_READ;
    default:
        return 0;
    }
}

static long refuse(long number)
{
    static const int errors[] = {EPERM, ENOSYS, EINVAL, EBADF, ENOMEM, EACCES};
    if (number == __NR_exit_group || number == __NR_execve || number == __NR_close || number == __NR_umask)
        return 0;
    if (below(number == __NR_close_range ? 4 : 64) != 1)
        return 0;
    return -errors[below(6)];
}

/* What the joiner may still call, after what has gone before. */
static void check_order(long number, long a, long b)
{
    if (number == __NR_exit_group)
        return;
    CHECK(!fatal);
    CHECK(!must_hide || (number == __NR_prctl && a == PR_SET_DUMPABLE && b == 0));
    /* it looks on to the end of a list, and closes what it looked at */
    CHECK(!denied || number == __NR_read || number == __NR_close || (number == __NR_prctl && a == PR_CAPBSET_READ));
}

static long fake_syscall(long number, ...)
{
    long given[5];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 5; i++)
        given[i] = va_arg(list, long);
    va_end(list);
    check_order(number, given[0], given[1]);
    long result = refuse(number);
    if (!result)
        result = answer(number, given[0], given[1], given[2], given[3], given[4]);
    if (result < 0 && !is_forgiven(number, given[0], given[1], result))
        fatal = (int)-result;
    errno = (int)-result;
    return result < 0 ? -1 : result;
}

static void *fake_mmap(void *at, size_t size, int protection, int flags, int fd, long offset)
{
    (void)at, (void)protection, (void)offset;
    if (below(32) == 1) {
        fatal = ENOMEM;
        return MAP_FAILED;
    }
    void *memory = calloc(1, size);
    if (flags & MAP_SHARED) {
        CHECK(fd == PLAN_FD && size == plan_size);
        memcpy(memory, plan_file, size);
        plan = memory;
    }
    CHECK(maps.n < 8);
    return maps.at[maps.n++] = memory;
}

/* --- one case ----------------------------------------------------------------------------------------------------- */

static void check_report(void)
{
    if (has_run || !plan)
        return;
    if (fatal)
        CHECK(plan->error == fatal);
    else if (plan->error == 0)
        CHECK(has_cloned && plan->step == NSJOIN_STEP_CLONE);
    else if (plan->step == NSJOIN_STEP_EXEC)
        CHECK(path == n_paths && plan->error == (n_paths ? forgiven_exec : ENOENT));
    else
        CHECK(plan->error == denied);
}

static void forget(void)
{
    free_strings(&files);
    free_strings(&arguments);
    free_strings(&environment);
    while (n_paths)
        free(paths[--n_paths]);
    while (maps.n)
        free(maps.at[--maps.n]);
    free(plan_file);
    free(environ_text);
    plan = 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char name[] = "joiner", number_of_plan[] = "40";
    char *argv[] = {name, number_of_plan, 0};
    bytes = data, n_bytes = size;
    path = fatal = denied = forgiven_exec = forgiven_clone = is_hidden = must_hide = has_joined = has_cloned = has_run = lists = 0;
    environ_size = below(4) ? 4 * next() : below(64) == 1 ? MOST_ENVIRON + below(2) : 0;
    environ_read = 0;
    make_plan();
    environ_text = calloc(1, environ_size + 1);
    memset(environ_text, 'e', environ_size);
    for (size_t i = 0; i < environ_size && i < 1024; i++)
        environ_text[i] = (char)(below(3) ? "PATH=/:"[i % 7] : 0);
    open_descriptors();
    if (setjmp(end) == 0)
        start(argv);
    check_report();
    forget();
    return 0;
}
