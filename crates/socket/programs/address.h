/* Addresses of hooks, of both families, as one type. */
#pragma once

#include <stdbool.h>
#include <bpf/bpf_endian.h>

#include "layout.h"

#define AF_INET 2
#define AF_INET6 10

static __always_inline bool same(const struct address *a, const struct address *b)
{
	return a->port == b->port && a->ip[3] == b->ip[3] && a->ip[2] == b->ip[2] &&
	       a->ip[1] == b->ip[1] && a->ip[0] == b->ip[0];
}

static __always_inline bool is_v4(const __u32 ip[4])
{
	return ip[0] == 0 && ip[1] == 0 && ip[2] == bpf_htonl(0xffff);
}

static __always_inline void read4(struct address *to, struct bpf_sock_addr *ctx)
{
	*to = (struct address){ .ip = { 0, 0, bpf_htonl(0xffff), ctx->user_ip4 }, .port = ctx->user_port };
}

static __always_inline void write4(struct bpf_sock_addr *ctx, const struct address *from)
{
	ctx->user_ip4 = from->ip[3];
	ctx->user_port = from->port;
}

static __always_inline void read6(struct address *to, struct bpf_sock_addr *ctx)
{
	*to = (struct address){ .port = ctx->user_port };
	to->ip[0] = ctx->user_ip6[0];
	to->ip[1] = ctx->user_ip6[1];
	to->ip[2] = ctx->user_ip6[2];
	to->ip[3] = ctx->user_ip6[3];
}

static __always_inline void write6(struct bpf_sock_addr *ctx, const struct address *from)
{
	ctx->user_ip6[0] = from->ip[0];
	ctx->user_ip6[1] = from->ip[1];
	ctx->user_ip6[2] = from->ip[2];
	ctx->user_ip6[3] = from->ip[3];
	ctx->user_port = from->port;
}

/* Where a socket is connected to, as the kernel has it; without a port if it is not. */
static __always_inline void peer_of(struct address *peer, struct bpf_sock *sk)
{
	bool v4 = sk->family == AF_INET;
	__u32 ip4 = sk->dst_ip4;
	__u32 ip6[4] = { sk->dst_ip6[0], sk->dst_ip6[1], sk->dst_ip6[2], sk->dst_ip6[3] };
	/* Or the compiler chooses a field by its address, which the kernel does not allow. */
	asm volatile("" : "+r"(ip4), "+r"(ip6[2]), "+r"(ip6[3]));
	*peer = (struct address){ .port = sk->dst_port };
	peer->ip[0] = v4 ? 0 : ip6[0];
	peer->ip[1] = v4 ? 0 : ip6[1];
	peer->ip[2] = v4 ? bpf_htonl(0xffff) : ip6[2];
	peer->ip[3] = v4 ? ip4 : ip6[3];
}

/* The address that a socket has. */
static __always_inline void source_of(__u32 ip[4], struct bpf_sock *sk)
{
	bool v4 = sk->family == AF_INET;
	__u32 ip4 = sk->src_ip4;
	__u32 ip6[4] = { sk->src_ip6[0], sk->src_ip6[1], sk->src_ip6[2], sk->src_ip6[3] };
	asm volatile("" : "+r"(ip4), "+r"(ip6[2]), "+r"(ip6[3]));
	ip[0] = v4 ? 0 : ip6[0];
	ip[1] = v4 ? 0 : ip6[1];
	ip[2] = v4 ? bpf_htonl(0xffff) : ip6[2];
	ip[3] = v4 ? ip4 : ip6[3];
}

/* Whether it is an address: a socket has one of its own where it was bound to one, or the kernel chose it for the peer. */
static __always_inline bool is_some(const __u32 ip[4])
{
	/* The wildcard of IPv4 may be mapped. */
	return ip[0] || ip[1] || (ip[2] && ip[2] != bpf_htonl(0xffff)) || ip[3];
}

/* From a loopback address nothing leaves the node. */
static __always_inline bool is_loopback(const __u32 ip[4])
{
	if (is_v4(ip))
		return (bpf_ntohl(ip[3]) >> 24) == 127;
	return ip[0] == 0 && ip[1] == 0 && ip[2] == 0 && ip[3] == bpf_htonl(1);
}

static __always_inline bool bound_to_loopback(struct bpf_sock *sk)
{
	__u32 ip[4];
	source_of(ip, sk);
	return is_loopback(ip);
}
