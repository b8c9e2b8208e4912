/* connect(2) and getpeername(2). */
#pragma once

#include "pick.h"

#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_MPTCP 262

/* The protocol of a service that a socket's belongs to, or 0. */
static __always_inline __u8 service_protocol(struct bpf_sock_addr *ctx)
{
	__u32 protocol = ctx->protocol;
	if (protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP)
		return IPPROTO_TCP;
	return protocol == IPPROTO_UDP ? IPPROTO_UDP : 0;
}

static __always_inline enum decision connecting(struct bpf_sock_addr *ctx, struct address *to)
{
	struct bpf_sock *sk = ctx->sk;
	__u8 protocol = service_protocol(ctx);
	if (!protocol || !sk)
		return PASS;
	__u64 client = bpf_get_netns_cookie(ctx);
	__u64 outcome = frontend(to, protocol, client);
	__u8 verdict = verdict_of(outcome);
	if (verdict == VERDICT_REFUSE && !is_relay(sk))
		return REFUSE;
	struct choice choice;
	if (verdict != VERDICT_BALANCE || is_relay(sk) || bound_to_loopback(sk) ||
	    !pick(outcome, to, client, &choice))
		goto pass;
	if (protocol == IPPROTO_TCP && !is_to_be_translated(&choice))
		goto pass;
	struct conn *conn = bpf_sk_storage_get(&conns, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!conn)
		return PASS;
	conn->service = *to;
	address_of(&conn->endpoint, choice.endpoint);
	conn->id = choice.id;
	conn->incarnation = choice.endpoint->incarnation;
	conn->since_ns = bpf_ktime_get_ns();
	*to = conn->endpoint;
	count_connection(choice.id);
	return TRANSLATE;
pass:
	/* It may have been connected to a service before. */
	bpf_sk_storage_delete(&conns, sk);
	return PASS;
}

SEC("cgroup/connect4")
int sluice_connect4(struct bpf_sock_addr *ctx)
{
	struct address to;
	read4(&to, ctx);
	switch (connecting(ctx, &to)) {
	case REFUSE:
		return refuse();
	case TRANSLATE:
		write4(ctx, &to);
	case PASS:
		return 1;
	}
	return 1;
}

SEC("cgroup/connect6")
int sluice_connect6(struct bpf_sock_addr *ctx)
{
	struct address to;
	read6(&to, ctx);
	switch (connecting(ctx, &to)) {
	case REFUSE:
		return refuse();
	case TRANSLATE:
		write6(ctx, &to);
	case PASS:
		return 1;
	}
	return 1;
}

/* Whether a socket is connected to the endpoint of a service: then `peer` becomes the service. */
static __always_inline bool service_of_conn(struct bpf_sock *sk, struct address *peer)
{
	struct conn *conn = bpf_sk_storage_get(&conns, sk, 0, 0);
	if (!conn || !same(&conn->endpoint, peer))
		return false;
	*peer = conn->service;
	return true;
}

SEC("cgroup/getpeername4")
int sluice_getpeername4(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct address peer;
	read4(&peer, ctx);
	if (sk && service_of_conn(sk, &peer))
		write4(ctx, &peer);
	return 1;
}

SEC("cgroup/getpeername6")
int sluice_getpeername6(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct address peer;
	read6(&peer, ctx);
	if (sk && service_of_conn(sk, &peer))
		write6(ctx, &peer);
	return 1;
}
