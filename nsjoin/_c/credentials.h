/* The joiner's credentials: keyring, groups, ids, capabilities. */
#ifndef NSJOIN_CREDENTIALS_H
#define NSJOIN_CREDENTIALS_H
#include "steps.h"

/* Keys in the caller's session keyring are the program's by possession: keyrings(7). */
static void new_keyring(plan_t *plan)
{
    begin(plan, NSJOIN_STEP_KEYRING);
    long result = SYS3(keyctl, K_JOIN_SESSION_KEYRING, 0, 0);
    if (result != -ENOSYS && result != -EPERM) /* no keys in this kernel; a seccomp filter, as most containers have */
        must(plan, result);
}

static void set_groups_first(plan_t *plan)
{
    begin(plan, NSJOIN_STEP_GROUPS);
    must(plan, SET_GROUPS(plan->n_groups, at(plan, plan->groups)));
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
#endif
