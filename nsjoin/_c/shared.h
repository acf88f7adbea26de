/* What the shim, the joiner and Python agree on. Read by the C compiler (twice) and by cffi, so: plain declarations,
 * fixed-width fields, no macros. */
#ifndef NSJOIN_SHARED_H
#define NSJOIN_SHARED_H
#include <stdint.h>

/* What is under way, in the order of the joiner's work: the report names one of these. */
enum nsjoin_step {
    NSJOIN_STEP_LAUNCH,
    NSJOIN_STEP_PLAN,
    NSJOIN_STEP_HIDE, /* after each change of credentials again */
    NSJOIN_STEP_STDIO,
    NSJOIN_STEP_ENV,
    NSJOIN_STEP_CGROUP,
    NSJOIN_STEP_CLOSE,
    NSJOIN_STEP_OOM_SCORE_ADJ,
    NSJOIN_STEP_GROUPS,
    NSJOIN_STEP_JOIN,
    NSJOIN_STEP_WITNESS,
    NSJOIN_STEP_ROOT,
    NSJOIN_STEP_CWD,
    NSJOIN_STEP_UNSHARE,
    NSJOIN_STEP_UMASK,
    NSJOIN_STEP_KEYRING,
    NSJOIN_STEP_BOUNDING,
    NSJOIN_STEP_IDS,
    NSJOIN_STEP_CAPABILITIES,
    NSJOIN_STEP_NO_NEW_PRIVS,
    NSJOIN_STEP_CLONE,
    NSJOIN_STEP_SESSION,
    NSJOIN_STEP_LSM_LABEL,
    NSJOIN_STEP_EXEC
};

enum nsjoin_flag {
    NSJOIN_FORK = 1,            /* a PID namespace is joined: only a child of the joiner is born inside */
    NSJOIN_CLOSE_FDS = 2,       /* close every descriptor above 2 that is not in keep */
    NSJOIN_RESTORE_SIGNALS = 4, /* SIGPIPE and SIGXFSZ, which Python ignores, back to their default */
    NSJOIN_SETSID = 8,
    NSJOIN_SETPGID = 16,
    NSJOIN_SETUID = 32,
    NSJOIN_SETGID = 64,
    NSJOIN_SETGROUPS = 128,
    NSJOIN_DROP_GROUPS = 256,   /* no supplementary groups, where the kernel allows it */
    NSJOIN_TRY_UID = 512,       /* a uid that is not mapped (EINVAL) is no error */
    NSJOIN_TRY_GID = 1024,
    NSJOIN_UMASK = 2048,
    NSJOIN_GROUPS_FIRST = 4096, /* set the groups before the joins: a user namespace may deny setgroups(2) for ever */
    NSJOIN_CHECK_CWD = 8192,    /* the working directory has to be below the root */
    NSJOIN_CAPABILITIES = 16384,
    NSJOIN_NO_NEW_PRIVS = 32768,
    NSJOIN_NEW_KEYRING = 131072, /* a session keyring of its own: keyctl(2) */
    NSJOIN_ENVIRON_INSIDE = 262144, /* environ is a /proc/PID: its file is opened when all is joined */
    NSJOIN_EMPTY_ENVIRON = 524288, /* an environment of nothing is no error */
    NSJOIN_SEARCH = 65536       /* look for the file in the PATH of the environment that was read */
};

enum nsjoin_how {
    NSJOIN_TRY = 1,             /* EPERM is no error: a later step tries again */
    NSJOIN_AGAIN = 2            /* only if no earlier step has joined this type */
};

struct nsjoin_join {
    int32_t fd;                 /* a namespace, or a pidfd */
    uint32_t nstypes;           /* CLONE_NEW*, or several of them for a pidfd */
    uint32_t how;               /* enum nsjoin_how */
};

/* Head of the plan's file; everything that its offsets name lies behind it in the same file. An offset of 0 is "none". */
struct nsjoin_plan {
    /* the report: the kernel writes pid (CLONE_PARENT_SETTID), the joiner and its child the rest */
    int32_t pid;
    int32_t step;               /* enum nsjoin_step: what is, or was, under way */
    int32_t index;              /* which entry of that step's list */
    int32_t error;              /* errno of that step, 0 while all is well */
    /* the plan */
    uint64_t sigmask;           /* the caller's signal mask, written by the launcher */
    uint64_t inheritable, permitted, effective, bounding, ambient; /* capabilities(7) */
    uint64_t user;              /* inode of the user namespace that the witness has to be in after the joins */
    uint64_t envp;              /* the joiner's own: its pointer to the environment that it has read */
    uint32_t size;              /* of the whole file, in bytes */
    uint32_t flags;             /* enum nsjoin_flag */
    int32_t stdio[3];           /* what becomes 0, 1 and 2; -1: as it is */
    int32_t root;               /* an O_PATH descriptor that becomes the root, -1: as it is */
    int32_t witness;            /* the target's pidfd, -1: none */
    int32_t pgid;
    uint32_t umask;
    uint32_t uids[3];           /* real, effective, saved */
    uint32_t gids[3];
    uint32_t unshare;           /* CLONE_NEW*: what the program gets new ones of, after the joins */
    int32_t environ;            /* a /proc/PID/environ to read instead of envp, -1: none; see NSJOIN_ENVIRON_INSIDE */
    int32_t cwd_fd;             /* a directory, -1: none */
    int32_t cgroup;             /* a directory of cgroup v2 for the program to be born in, -1: none */
    int32_t proc;               /* the joiner's own: the /proc that was here before the joins */
    uint32_t lent, n_lent;      /* int32_t[]: made close-on-exec again at once */
    uint32_t cgroups, n_cgroups; /* int32_t[]: files cgroup.procs to move into before the joins */
    uint32_t keep, n_keep;      /* int32_t[]: not closed, all above 2, ascending */
    uint32_t groups, n_groups;  /* uint32_t[] */
    uint32_t joins, n_joins;    /* struct nsjoin_join[] */
    uint32_t cwd;               /* a string */
    uint32_t oom_score_adj;     /* a string: proc(5) */
    uint32_t lsm_label;         /* a string for /proc/self/attr/exec */
    uint32_t text;              /* files to try, argv, envp: each string ended by a NUL, one behind the other */
    uint32_t n_files, n_argv, n_envp;
    uint32_t tables;            /* room for the joiner's pointers to them: three lists, each ended by NULL */
};

/* Where the descriptors of a launch, a holder or a call lie: the child of a fork elsewhere in this process closes its
 * copies of them. Filled and emptied by C, and until then the struct around it stays where it is; all zero is a link of
 * no list. */
struct nsjoin_link {
    struct nsjoin_link *next, *previous;
    int32_t *fds;
    int32_t n;
};

/* Each returns what the system call returns, or -errno. */
int nsjoin_setns(int fd, int nstypes);
int nsjoin_unshare(int nstypes);
int nsjoin_pidfd_open(int pid, unsigned int flags);
int nsjoin_pidfd_send_signal(int pidfd, int signal);
int nsjoin_pidfd_getfd(int pidfd, int fd);
/* All signals of this thread, libc's own too: blocked, with the mask before that, and as they were. */
int nsjoin_block_signals(uint64_t *before);
int nsjoin_restore_signals(const uint64_t *before);
int nsjoin_prctl(int option, unsigned long value);
int nsjoin_ioctl(int fd, unsigned long request);
int nsjoin_ioctl_value(int fd, unsigned long request, int value);
int nsjoin_ioctl_out(int fd, unsigned long request, void *out);
/* resolve: RESOLVE_* of openat2(2) */
int nsjoin_openat2(int directory, const char *path, int flags, uint64_t resolve);

/* st_dev, as the kernel knows it already: a file system that is served by a process (FUSE) is not asked; or -errno */
int64_t nsjoin_device(int fd);
int nsjoin_memfd_create(const char *name, unsigned int flags);
/* pwrite(2) of everything; EFBIG beyond RLIMIT_FSIZE, without SIGXFSZ. */
int nsjoin_write(int fd, const char *data, int64_t n, int64_t offset);

/* A number for this thread of the kernel that no other one gets, also after its end; its lower half is the thread's id.
 * The one thread of a fork's child keeps its parent's. */
uint64_t nsjoin_thread(void);

/* A descriptor of the namespace that this thread is in now, by a PIDFD_GET_*_NAMESPACE request (Linux 6.11). */
int nsjoin_own(unsigned long request);

/* Where a thread is to go: what to save first, the moves, the root that it gets with mnt. */
struct nsjoin_trip {
    int32_t n;
    uint32_t nstypes[8];        /* CLONE_NEW* */
    uint32_t requests[8];       /* PIDFD_GET_* for what is saved of each */
    int32_t n_moves;
    struct { int32_t fd; uint32_t nstypes; } moves[8];
    int32_t root;               /* an O_PATH descriptor, -1: none */
    int32_t check_way_back;     /* of each that is saved: whether it belongs to our user namespace or a descendant */
};

enum nsjoin_stage { NSJOIN_SAVE = 1, NSJOIN_NO_WAY_BACK, NSJOIN_MOVE, NSJOIN_ROOT, NSJOIN_BACK };

/* A thread's stay in other namespaces: what it needs for the way back. Filled and emptied by C, so that no exception
 * between a call and an assignment can lose a descriptor or leave the thread inside. */
struct nsjoin_stay {
    int32_t is_given;           /* the caller has put descriptors into saved, which the kernel cannot open by pidfd */
    int32_t n;                  /* how many are saved; 0: this stay is over, or has not begun */
    uint32_t nstypes[8];
    int32_t saved[8];
    uint32_t joined;            /* CLONE_NEW* bits of what the thread has left */
    int32_t root, cwd;          /* O_PATH descriptors, with mnt */
    int32_t stage, failed;      /* what failed, and its index in the trip */
    const char *call;           /* and by which system call */
};
/* All moves, or none. If the way back fails as well, stage is NSJOIN_BACK. */
int nsjoin_enter(struct nsjoin_stay *stay, const struct nsjoin_trip *trip);
/* Goes back to all that was left, in reverse, and closes everything, also when one fails: then -errno of the first. */
int nsjoin_leave(struct nsjoin_stay *stay);
/* Whether this thread has a capability in its user namespace. */
int nsjoin_has(int capability);

/* One call in a forked child: the way inside, what both ends hold, the message. Filled and emptied by C, as a stay is;
 * all zero is a call that is not open. */
struct nsjoin_call {
    int32_t is_open;
    struct nsjoin_plan *plan;   /* the way inside: joins, witness, root, ids. The fork copies it */
    /* descriptors, -1: none */
    int32_t channel[2];         /* sockets that carry records: the caller's end, the child's */
    int32_t control[2];         /* with NSJOIN_FORK: the caller's end, that of the process in the middle */
    int32_t home, children;     /* with NSJOIN_FORK: the PID namespaces of the caller and of its children */
    int32_t self, child;        /* pidfds */
    /* the fork */
    int32_t caller;             /* pid */
    uint64_t sigmask;           /* of the caller, while its signals are blocked */
    int32_t is_blocked;
    int32_t is_away;            /* the caller's children would be born elsewhere, until it is undone */
    int32_t is_born_inside;     /* the child was: no process in the middle is needed */
    int32_t error;              /* -errno of the caller's way back */
    uint64_t argv, n_argv;      /* where what /proc/PID/cmdline shows is in memory, and its length; 0: not known */
    char *argv_kept;            /* room for as much */
    char comm[16];
    /* a message: text of this length follows its head, and descriptors come with it */
    struct nsjoin_head { int32_t kind, step, index, error; int64_t length; } head;
    int32_t n_fds;
    int32_t fds[254];
    struct nsjoin_link link;    /* of the descriptors from channel to child */
};
/* Opens what the kernel can open at once; home and children stay -1 where it cannot. */
int nsjoin_open_call(struct nsjoin_call *call);
void nsjoin_close_call(struct nsjoin_call *call);
/* Before and after fork(2) in the caller. Signals are blocked between them, and where the caller can go there and come
 * back, the child is born in the PID namespace that will be joined. The second is -errno of that way back. */
int nsjoin_begin_fork(struct nsjoin_call *call);
int nsjoin_end_fork(struct nsjoin_call *call);
/* Opens the pidfd of the child (Linux 5.3). */
int nsjoin_watch(struct nsjoin_call *call, int pid);
/* In the child, before its signals are unblocked: no signal has a handler any more, except those that a fault raises. The
 * bits (1 << number - 1) of all that had one. */
uint64_t nsjoin_drop_handlers(void);
/* In the child: everything that the joiner does for a program, in its order. Does not return if a step fails. */
void nsjoin_go_inside(struct nsjoin_call *call);
/* In the child: sends the report of a failed step, and ends. */
void nsjoin_give_up(struct nsjoin_call *call, int step, int index, int error);
/* In the one in the middle: its next fork's child tells the caller that it is there, before any hook runs in it; and that
 * it has been reaped. */
void nsjoin_tell_of_birth(struct nsjoin_call *call);
void nsjoin_tell_of_end(const struct nsjoin_call *call);
/* In the caller: the pid of that child if it has been born and not been reaped there, 0 if it has; -EAGAIN: not reported.
 * */
int nsjoin_left_behind(const struct nsjoin_call *call);
/* In the caller: the length of the next message's text, -ENODATA if there is none, -EBADMSG if it is not what the message
 * says; then the message. */
int64_t nsjoin_next_length(struct nsjoin_call *call);
int nsjoin_receive(struct nsjoin_call *call, char *text);

/* Inode numbers of the namespaces that the pidfd's process (-1: this thread) is in; 0 where it has none. */
int nsjoin_inodes(int pidfd, int n, const uint32_t *requests, uint64_t *inodes);

/* Whether the pidfd's process and this thread are in the same namespace: 1, 0, or -errno. */
int nsjoin_is_shared(int pidfd, unsigned long request);
/* inodes: this thread's namespaces, then the process's. Whether this thread has CAP_SYS_ADMIN, or -errno. */
int nsjoin_look(int pidfd, int n, const uint32_t *requests, uint64_t *inodes);

/* The joiner, as the bytes of an executable file. */
int nsjoin_image_size(void);
const unsigned char *nsjoin_image(void);
/* What one launch holds. Filled by C, so that no exception between a call and an assignment can lose any of it. */
struct nsjoin_work {
    int32_t plan;               /* the file of plan and report, -1: none */
    int32_t barrier[2];         /* a pipe: the joiner and its child hold the write end until they exec or end */
    int32_t joiner;             /* pid, 0: not started */
    int32_t no_paths;           /* no path is opened or executed: it would be in a foreign mount namespace */
    struct nsjoin_link link;
};
int nsjoin_prepare(struct nsjoin_work *work);
/* Starts the image with the plan in a new process. What went wrong there stands in the report. The lent descriptors go
 * along although they are close-on-exec. EXDEV where the process would not be, or was not, born in the PID namespace that
 * at_home wants; ENOTTY where the kernel does not tell beforehand. */
enum nsjoin_at_home {
    NSJOIN_ANYWHERE = 0,
    NSJOIN_AT_HOME = 1,    /* in the caller's, or it ends at once */
    NSJOIN_CHECK_HOME = 2, /* and that is asked for before it is born: Linux 6.11 */
};
int nsjoin_launch(struct nsjoin_work *work, int image, const char *plan_number, const int32_t *lent, int n_lent, int at_home);
void nsjoin_close_barrier(struct nsjoin_work *work);
void nsjoin_finish(struct nsjoin_work *work);

/* What is under way when a holder does not come to life. */
enum nsjoin_hold_step {
    NSJOIN_HOLD_CLONE, NSJOIN_HOLD_USER, NSJOIN_HOLD_STDIO, NSJOIN_HOLD_ROOT, NSJOIN_HOLD_TIME, NSJOIN_HOLD_OFFSETS,
    NSJOIN_HOLD_PROPAGATION, NSJOIN_HOLD_EXEC
};
/* A process that is born in new namespaces and keeps them, as the init of a PID namespace too: the joiner, waiting for a
 * plan that never comes, until the other end of its stdin is closed. */
struct nsjoin_hold {
    uint32_t nstypes;           /* CLONE_NEW* */
    uint32_t propagation;       /* MS_PRIVATE, ...: of all mounts in a new mount namespace, 0: as they are */
    int32_t user;               /* a user namespace to be born in, as the init of a PID namespace; -1: the caller's */
    int32_t stays;              /* it has the other end itself */
    int32_t tie;                /* the caller's end, -1: none */
    int32_t barrier;            /* while it starts, else -1 */
    int32_t pid;                /* of the holder, our child, once it has been started */
    int32_t step;               /* enum nsjoin_hold_step */
    int32_t no_paths;           /* as of a work */
    struct nsjoin_link link;    /* of tie and barrier */
};
/* Starts the image as a holder. offsets: what is written to timens_offsets of a new time namespace, NULL: nothing.
 * -errno also where the holder has been started and failed: then it ends, and is the caller's to reap. */
int nsjoin_hold(struct nsjoin_hold *hold, int image, const char *offsets, int n_offsets);
/* Closes our end: the holder ends unless it has that end itself. */
void nsjoin_untie(struct nsjoin_hold *hold);
int nsjoin_mount(const char *source, const char *target, const char *fstype, unsigned long flags);
int nsjoin_umount(const char *target, int flags);
/* Mounts the file of the first descriptor on that of the second: open_tree(2) and move_mount(2), Linux 5.2. */
int nsjoin_bind(int fd, int on);
/* environ(7), to be read under the interpreter's lock */
extern char **environ;
#endif
