/* How connections fare: the health of endpoints, and what connections were, once they are over. Runs when a
 * connection is made, at time-outs while it is being made, and when it is over; never for a packet. */
#pragma once

#include "affinity.h"
#include "kernel.h"

/* The endpoint that a connection was translated to, if the id still means the same. */
static __always_inline struct endpoint *endpoint_of(const struct conn *conn)
{
	struct endpoint *endpoint = bpf_map_lookup_elem(&endpoints, &conn->id);
	return endpoint && endpoint->incarnation == conn->incarnation ? endpoint : 0;
}

static __always_inline void has_failed(struct endpoint *endpoint)
{
	/* Two at once may count as one. */
	__u64 count = *(volatile __u64 *)&endpoint->failures & FAILURES_COUNT;
	/* 1, 2, 4, 8, 16 s, as long as nothing else is heard. */
	__u64 until = bpf_ktime_get_ns() + (NSEC_PER_SEC << (count < 4 ? count : 4));
	*(volatile __u64 *)&endpoint->failures = (until & ~FAILURES_COUNT) | (count < FAILURES_COUNT ? count + 1 : count);
}

/* Whether somebody of this node reached the endpoint within the last second: then it may be the client's own doing that a
 * connection of its has failed. It may throw away what it is answered (SO_ATTACH_FILTER), or send what no router brings so
 * far (IP_TTL), and any number of clients may. */
static __always_inline bool is_reached(const struct conn *conn)
{
	struct account *account = bpf_map_lookup_elem(&accounts, &conn->id);
	if (!account)
		return false;
	__u32 since_served = (__u32)(bpf_ktime_get_ns() >> SERVED_SHIFT) - *(volatile __u32 *)&account->served;
	return since_served < NSEC_PER_SEC >> SERVED_SHIFT;
}

static __always_inline void has_served(struct endpoint *endpoint)
{
	/* Port and flags are one word, and the agent changes flags too. */
	if (endpoint->flags & ENDPOINT_UNPROVEN)
		__sync_fetch_and_and((__u32 *)&endpoint->port, ~(ENDPOINT_UNPROVEN << 16));
	if (endpoint->failures)
		*(volatile __u64 *)&endpoint->failures = 0;
}

/* Both directions, as close(2) has them before anything else. */
#define SHUTDOWN_MASK 3

#define ECONNREFUSED 111

/* Why a connection that was being made is over. */
enum end {
	GIVEN_UP, /* by the client */
	REFUSED, /* by the endpoint, or by who answers in its place */
	FAILED,
};

/* Where it was the client who ended it the socket has no error. But who has one may have lost it again: a client that
 * polls takes it (SO_ERROR) as soon as it is there, which may be before we are asked. What the kernel ends has nothing left
 * that waits to be acknowledged (tcp_done_with_error); what the client does has its first packet there, or has not sent one
 * (TCP_FASTOPEN_CONNECT) and is closed. */
static __always_inline enum end end_of(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	if (!sk)
		return GIVEN_UP;
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return GIVEN_UP;
	struct sock *sock = (struct sock *)tcp;
	/* Read once. */
	int error = *(volatile int *)&sock->sk_err;
	if (error)
		return error == ECONNREFUSED ? REFUSED : FAILED;
	return sock->sk_shutdown == SHUTDOWN_MASK || tcp->packets_out ? GIVEN_UP : FAILED;
}

static __always_inline struct totals *totals_here(void)
{
	__u32 stripe = bpf_get_smp_processor_id() % STRIPES;
	return bpf_map_lookup_elem(&totals, &stripe);
}

/* The bound that a life does not pass. */
static __always_inline __u32 life_of(__u64 us)
{
	__u32 at = 0;
#define PASSES(bound) at += us > bound##ull;
	LIFE_BOUNDS_US(PASSES)
#undef PASSES
	return at;
}

/* A connection was given up, or could not be made. */
static __always_inline void has_come_to_nothing(struct bpf_sock_ops *ctx, const struct conn *conn)
{
	enum end end = end_of(ctx);
	if (end == GIVEN_UP) {
		struct totals *all = totals_here();
		if (all)
			__sync_fetch_and_add(&all->aborted, 1);
		return;
	}
	struct endpoint *endpoint = endpoint_of(conn);
	struct account *account = bpf_map_lookup_elem(&accounts, &conn->id);
	if (!endpoint || !account)
		return;
	__sync_fetch_and_add(&account->failed, 1);
	/* Who refuses says so at once, and has served others until then. */
	if (end == REFUSED || !is_reached(conn))
		has_failed(endpoint);
}

/* A connection that was made is over. */
static __always_inline void is_over(struct bpf_sock_ops *ctx, const struct conn *conn)
{
	struct account *account = bpf_map_lookup_elem(&accounts, &conn->id);
	struct totals *all = totals_here();
	if (!account || !all || !endpoint_of(conn))
		return;
	__u64 us = (bpf_ktime_get_ns() - conn->since_ns) / 1000;
	__sync_fetch_and_add(&all->lives[life_of(us)], 1);
	__sync_fetch_and_add(&account->closed, 1);
	/* The kernel counts our SYN, and each side's FIN, as a byte. */
	__u64 to = ctx->bytes_acked, back = ctx->bytes_received;
	__sync_fetch_and_add(&account->bytes_to, to ? to - 1 : 0);
	__sync_fetch_and_add(&account->bytes_from, back);
	__sync_fetch_and_add(&account->duration_us, us);
}

/* A connection counts from when it is established until it is closed. So what never came about never counts: where
 * there is no route or no port, where it was refused or given up, or where it waits for its first data. */
static __always_inline void has_become(struct bpf_sock_ops *ctx, const struct conn *conn, __u32 from, __u32 to)
{
	if (to == BPF_TCP_ESTABLISHED) {
		struct endpoint *endpoint = endpoint_of(conn);
		if (!endpoint)
			return;
		has_served(endpoint);
		struct account *account = bpf_map_lookup_elem(&accounts, &conn->id);
		if (!account)
			return;
		*(volatile __u32 *)&account->served = bpf_ktime_get_ns() >> SERVED_SHIFT;
		__sync_fetch_and_add(&account->connections, 1);
	} else if (from == BPF_TCP_SYN_SENT || from == BPF_TCP_SYN_RECV) {
		has_come_to_nothing(ctx, conn);
	} else if (from != BPF_TCP_CLOSE) {
		is_over(ctx, conn);
	}
}

/* The first time-out of a connection that is being made: once is enough. */
static __always_inline void is_silent(const struct conn *conn)
{
	struct endpoint *endpoint = endpoint_of(conn);
	if (!endpoint)
		return;
	struct totals *all = totals_here();
	if (all)
		__sync_fetch_and_add(&all->timeouts, 1);
	if (!is_reached(conn))
		has_failed(endpoint);
}

/* Whether a call is of any interest, before it is looked whose it is: most are not. */
static __always_inline bool is_of_interest(struct bpf_sock_ops *ctx)
{
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		return true;
	case BPF_SOCK_OPS_RTO_CB:
		return ctx->state == BPF_TCP_SYN_SENT && ctx->args[0] == 0;
	case BPF_SOCK_OPS_STATE_CB:
		return ctx->args[1] == BPF_TCP_ESTABLISHED || ctx->args[1] == BPF_TCP_CLOSE;
	default:
		return false;
	}
}

/* What is to be told of a connection. */
#define OF_A_CONNECTION (BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTO_CB_FLAG)

SEC("sockops")
int sluice_sockops(struct bpf_sock_ops *ctx)
{
	if (!is_of_interest(ctx))
		return 1;
	struct bpf_sock *sk = ctx->sk;
	if (!sk)
		return 1;
	struct conn *conn = bpf_sk_storage_get(&conns, sk, 0, 0);
	if (!conn)
		return 1;
	if (!conn->since_ns) {
		if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB)
			learn_source(ctx, sk, conn);
		bpf_sk_storage_delete(&conns, sk);
		return 1;
	}
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		/* Asks for the other calls, for this socket only. */
		bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | OF_A_CONNECTION);
		break;
	case BPF_SOCK_OPS_RTO_CB:
		is_silent(conn);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		has_become(ctx, conn, ctx->args[0], ctx->args[1]);
		/* The socket may be used again, to listen or to connect, and that is not this connection's. */
		if (ctx->args[1] == BPF_TCP_CLOSE) {
			bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags & ~OF_A_CONNECTION);
			bpf_sk_storage_delete(&conns, sk);
		}
		break;
	}
	return 1;
}
