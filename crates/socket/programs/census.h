/* Which sockets of the node are translated, in all of its network namespaces. */
#pragma once

#include "connect.h"
#include "kernel.h"

/* Where a socket is connected to. */
static __always_inline void kernels_peer(struct address *peer, struct sock *sk)
{
	if (sk->__sk_common.skc_family == AF_INET) {
		*peer = (struct address){ .ip = { 0, 0, bpf_htonl(0xffff), sk->__sk_common.skc_daddr } };
	} else {
		*peer = (struct address){};
		peer->ip[0] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[0];
		peer->ip[1] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[1];
		peer->ip[2] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[2];
		peer->ip[3] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[3];
	}
	peer->port = sk->__sk_common.skc_dport;
}

static __always_inline int list(struct storage_iterator *ctx, bool only_udp)
{
	struct sock *sk = ctx->sk;
	struct conn *conn = ctx->value;
	if (!sk || !conn || !conn->since_ns || (only_udp && sk->sk_protocol != IPPROTO_UDP))
		return 0;
	/* One that was closed is there for a while, and has no port; one that was ended is not connected. */
	if (!sk->__sk_common.skc_num || sk->__sk_common.skc_state == BPF_TCP_CLOSE)
		return 0;
	/* It may have connected elsewhere since. */
	struct address peer;
	kernels_peer(&peer, sk);
	if (!same(&peer, &conn->endpoint))
		return 0;
	struct translated one = {
		.namespace = sk->__sk_common.skc_net.net->net_cookie,
		.cookie = bpf_get_socket_cookie(sk),
		.conn = *conn,
		.local_port = sk->__sk_common.skc_num,
		.protocol = sk->sk_protocol,
		.family = sk->__sk_common.skc_family,
		.device = sk->__sk_common.skc_bound_dev_if,
	};
	if (one.family == AF_INET) {
		one.local[2] = bpf_htonl(0xffff);
		one.local[3] = sk->__sk_common.skc_rcv_saddr;
	} else {
		one.local[0] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[0];
		one.local[1] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[1];
		one.local[2] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[2];
		one.local[3] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[3];
	}
	bpf_seq_write(ctx->meta->seq, &one, sizeof(one));
	return 0;
}

SEC("iter/bpf_sk_storage_map")
int sluice_census(struct storage_iterator *ctx)
{
	return list(ctx, false);
}

/* Those that are ended when their endpoint goes: of TCP there may be very many. */
SEC("iter/bpf_sk_storage_map")
int sluice_census_udp(struct storage_iterator *ctx)
{
	return list(ctx, true);
}
