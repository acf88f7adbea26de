/* The steps that the joiner and the forked child of a call share. Each takes them from a plan; what includes this defines
 * fail(), which reports the plan's step and index with an errno, and does not return. System calls only (syscalls.h). */
#ifndef NSJOIN_STEPS_H
#define NSJOIN_STEPS_H
#include "shared.h"
#include "syscalls.h"

typedef struct nsjoin_plan plan_t;

static void fail(plan_t *plan, long result);

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

/* Before a user namespace is joined, this works for root; after it, where the namespace's /proc/PID/setgroups allows. */
static void drop_groups(plan_t *plan)
{
    begin(plan, NSJOIN_STEP_GROUPS);
    long result = SET_GROUPS(0, 0);
    if (result < 0 && result != -EPERM)
        fail(plan, result);
}

/* Root of the target must not trace this process or look into its /proc once it is inside: ptrace(2), proc(5). A change of
 * credentials, as by joining a user namespace, sets this to fs.suid_dumpable, which may be 1. */
static void hide(plan_t *plan)
{
    begin(plan, NSJOIN_STEP_HIDE);
    must(plan, SYS5(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0));
}

/* A process that leaves a user namespace never comes back: if the target is still in this one, all that was joined belongs
 * to it. Unchecked, the target could leave between the caller's look and setns, and this process would be in the target's
 * mount namespace with the caller's privileges. */
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

/* born_into: CLONE_NEW* of namespaces that this process was born in, and so need not join. */
static void join(plan_t *plan, uint32_t born_into)
{
    const struct nsjoin_join *joins = at(plan, plan->joins);
    uint32_t joined = 0;
    for (uint32_t i = 0; i < plan->n_joins; i++) {
        begin(plan, NSJOIN_STEP_JOIN);
        plan->index = (int32_t)i;
        uint32_t nstypes = joins[i].nstypes & ~born_into;
        if (nstypes == 0 || ((joins[i].how & NSJOIN_AGAIN) && (joined & nstypes)))
            continue;
        long result = SYS3(setns, joins[i].fd, nstypes, 0);
        if (result < 0 && (result != -EPERM || !(joins[i].how & NSJOIN_TRY)))
            fail(plan, result);
        if (result == 0) {
            joined |= nstypes;
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
#endif
