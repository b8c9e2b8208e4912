/* How connections fare: the health of endpoints, and what connections were, once they are over. Runs when a
 * connection is made, at time-outs while it is being made, and when it is over; never for a packet. */
#pragma once

#include "kernel.h"
#include "pick.h"

/* The endpoint that a connection was translated to, if the id still means the same. */
static __always_inline struct endpoint *endpoint_of(const struct conn *conn)
{
	struct endpoint *endpoint = bpf_map_lookup_elem(&endpoints, &conn->id);
	return endpoint && endpoint->incarnation == conn->incarnation ? endpoint : 0;
}

static __always_inline void has_failed(struct endpoint *endpoint)
{
	__u32 fails = __sync_fetch_and_add(&endpoint->fails, 1);
	/* 1, 2, 4, 8, 16 s, as long as nothing else is heard. */
	__u64 pause = NSEC_PER_SEC << (fails < 4 ? fails : 4);
	*(volatile __u64 *)&endpoint->until_ns = bpf_ktime_get_ns() + pause;
}

static __always_inline void has_served(struct endpoint *endpoint)
{
	/* Port and flags are one word, and the agent changes flags too. */
	if (endpoint->flags & ENDPOINT_UNPROVEN)
		__sync_fetch_and_and((__u32 *)&endpoint->port, ~(ENDPOINT_UNPROVEN << 16));
	if (endpoint->fails) {
		*(volatile __u32 *)&endpoint->fails = 0;
		*(volatile __u64 *)&endpoint->until_ns = 0;
	}
}

/* What a connection that could not be made ended with: 0 if the client gave it up. */
static __always_inline int error_of(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	if (!sk)
		return 0;
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return 0;
	return ((struct sock *)tcp)->sk_err;
}

static __always_inline void closed(struct bpf_sock_ops *ctx, const struct conn *conn, __u32 from)
{
	struct account *account = bpf_map_lookup_elem(&accounts, &conn->id);
	struct endpoint *endpoint = endpoint_of(conn);
	if (!account || !endpoint)
		return;
	if (from == BPF_TCP_SYN_SENT) {
		if (error_of(ctx)) {
			__sync_fetch_and_add(&account->failed, 1);
			has_failed(endpoint);
		} else {
			__sync_fetch_and_add(&account->aborted, 1);
		}
		return;
	}
	__sync_fetch_and_add(&account->closed, 1);
	/* The kernel counts our SYN, and each side's FIN, as a byte. */
	__u64 to = ctx->bytes_acked, back = ctx->bytes_received;
	__sync_fetch_and_add(&account->bytes_to, to ? to - 1 : 0);
	__sync_fetch_and_add(&account->bytes_from, back);
	__sync_fetch_and_add(&account->duration_us, (bpf_ktime_get_ns() - conn->since_ns) / 1000);
}

SEC("sockops")
int sluice_sockops(struct bpf_sock_ops *ctx)
{
	__u32 op = ctx->op;
	if (op != BPF_SOCK_OPS_TCP_CONNECT_CB && op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB &&
	    op != BPF_SOCK_OPS_RTO_CB && op != BPF_SOCK_OPS_STATE_CB)
		return 1;
	struct bpf_sock *sk = ctx->sk;
	if (!sk)
		return 1;
	struct conn *conn = bpf_sk_storage_get(&conns, sk, 0, 0);
	if (!conn)
		return 1;
	struct endpoint *endpoint = endpoint_of(conn);
	switch (op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		/* Asks for the other calls, for this socket only. */
		bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG |
						       BPF_SOCK_OPS_RTO_CB_FLAG);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		if (endpoint)
			has_served(endpoint);
		break;
	case BPF_SOCK_OPS_RTO_CB:
		/* The first time-out of a connection that is being made: once is enough. */
		if (endpoint && ctx->state == BPF_TCP_SYN_SENT && ctx->args[0] == 0) {
			struct account *account = bpf_map_lookup_elem(&accounts, &conn->id);
			if (account)
				__sync_fetch_and_add(&account->timeouts, 1);
			has_failed(endpoint);
		}
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ctx->args[1] == BPF_TCP_CLOSE)
			closed(ctx, conn, ctx->args[0]);
		break;
	}
	return 1;
}
