/* The joiner's descriptors: those that came along, standard input, output and error, and closing the rest. */
#ifndef NSJOIN_DESCRIPTORS_H
#define NSJOIN_DESCRIPTORS_H
#include "steps.h"

static long number(const char *digit)
{
    long value = 0;
    for (; *digit; digit++)
        value = value * 10 + (*digit - '0');
    return value;
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
#endif
