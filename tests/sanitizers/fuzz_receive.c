/* libFuzzer: a record of bytes and descriptors from the other process, as call_in's caller receives it. */
#include "_c/shim.c"
#include <stdlib.h>

enum { MOST = 1 << 20 };

static void send_record(const struct nsjoin_call *call, const uint8_t *data, size_t size, size_t n_fds)
{
    _Alignas(struct cmsghdr) char room[CMSG_SPACE(253 * sizeof(int))] = {0};
    struct iovec part = {(void *)(uintptr_t)data, size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (n_fds) {
        message.msg_control = room;
        message.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        *head = (struct cmsghdr){.cmsg_len = CMSG_LEN(n_fds * sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        for (size_t i = 0; i < n_fds; i++)
            memcpy(CMSG_DATA(head) + i * sizeof(int), &call->channel[1], sizeof(int));
    }
    if (sendmsg(call->channel[1], &message, 0) < 0)
        abort();
}

static int lowest_free(void)
{
    int fd = dup(0);
    close(fd);
    return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (own_pidfd() < 0) /* of this thread, which stays */
        abort();
    int lowest = lowest_free();
    struct nsjoin_plan plan = {.flags = size & 1 ? NSJOIN_FORK : 0};
    struct nsjoin_call call = {.plan = &plan};
    if (size < 2 || nsjoin_open_call(&call) < 0)
        return 0;
    send_record(&call, data + 1, size - 1, data[0] % 254);
    int64_t length = nsjoin_next_length(&call);
    if (length >= 0 && length <= MOST) {
        char *text = malloc((size_t)length + 1); /* exactly so long, for ASan */
        if (nsjoin_receive(&call, text) == 0 && call.n_fds != data[0] % 254)
            abort();
        free(text);
    }
    nsjoin_close_call(&call);
    if (lowest_free() != lowest) /* a descriptor is left */
        abort();
    return 0;
}
