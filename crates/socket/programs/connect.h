/* connect(2) and getpeername(2). */
#pragma once

#include "affinity.h"

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

/* Whether somebody listens at a port of the client's own loopback address. */
static __always_inline bool is_listened_on(struct bpf_sock_addr *ctx, bool v4, __u16 port)
{
	struct bpf_sock_tuple at = {};
	__u32 size = sizeof(at.ipv4);
	if (v4) {
		at.ipv4.daddr = bpf_htonl(0x7f000001);
		at.ipv4.dport = port;
	} else {
		at.ipv6.daddr[3] = bpf_htonl(1);
		at.ipv6.dport = port;
		size = sizeof(at.ipv6);
	}
	struct bpf_sock *found = bpf_sk_lookup_tcp(ctx, &at, size, BPF_F_CURRENT_NETNS, 0);
	if (!found)
		return false;
	bool is = found->state == BPF_TCP_LISTEN;
	bpf_sk_release(found);
	return is;
}

/* Whether a pod has a proxy that what it sends is redirected to, by rules in its namespace: those have to see the
 * address of the service. Asked for each connection, as a proxy comes and goes. The node's own network is left out,
 * where anybody may listen for anything. */
static __always_inline bool has_sidecar(struct bpf_sock_addr *ctx, const struct address *to,
					const struct client *client)
{
	if (client->is_node)
		return false;
	/* Two ports in network order. */
	__u32 ports = client->meta->sidecar_ports;
	__u16 one = ports, two = ports >> 16;
	bool v4 = is_v4(to->ip);
	return (one && is_listened_on(ctx, v4, one)) || (two && is_listened_on(ctx, v4, two));
}

/* Whether a connected UDP socket that leads nowhere any more would be ended. */
static __always_inline bool will_be_ended(const struct client *client)
{
	return client->meta->flags & (client->is_node ? META_NODE_UDP : META_PODS_UDP);
}

/* What the table says of a socket that connects or sends there: 0 if it is to be left alone. */
static __always_inline __u64 outcome_of(struct bpf_sock *sk, const struct address *to, __u8 protocol,
					const struct client *client)
{
	__u64 outcome = frontend(to, protocol, client);
	/* Most connections are to no frontend, and cost no more. */
	if (verdict_of(outcome) == VERDICT_RELAY || is_relay(sk, client->meta) || is_stranger(client))
		return 0;
	return outcome;
}

/* What a socket was translated to, if it is still connected to that: connect(2) may have failed after we were asked, and
 * AF_UNSPEC tells nobody. */
static __always_inline struct conn *conn_of(struct bpf_sock *sk)
{
	struct conn *conn = bpf_sk_storage_get(&conns, sk, 0, 0);
	if (!conn || !conn->since_ns)
		return 0;
	struct address peer;
	peer_of(&peer, sk);
	return same(&conn->endpoint, &peer) ? conn : 0;
}

/* Whether an address that a socket is bound to, or that a datagram says it is from, is one to keep.
 *
 * Nothing leaves the node from a loopback address. And an endpoint may have no way back to any other of the node's, as
 * that of a bridge: the relay answers there. A pod's address is its own. */
static __always_inline bool is_to_be_kept(const __u32 source[4], const struct client *client)
{
	return is_loopback(source) || (client->is_node && is_some(source));
}

static __always_inline bool is_bound(struct bpf_sock *sk, const struct client *client)
{
	__u32 source[4];
	source_of(source, sk);
	return is_to_be_kept(source, client);
}

/* The endpoint that a client keeps. Where the relay has to choose one the socket remembers only that it asks. */
static __always_inline bool pick_kept(struct bpf_sock *sk, const struct address *to, const struct client *client,
				      __u32 rule, struct choice *choice)
{
	struct affinity_key key = {};
	source_of(key.ip, sk);
	bool is_bound = is_some(key.ip);
	/* Others of the namespace do not say what this one will come from: its device or its mark may lead another way. */
	bool is_apart = !is_bound && (sk->bound_dev_if || sk->mark);
	bool is_known = is_bound || (!is_apart && find_source(key.ip, client->namespace, to));
	if (is_known && follow(&key, rule, to, client->meta, choice))
		return true;
	if (is_bound || is_apart)
		bpf_sk_storage_delete(&conns, sk);
	else
		ask_source(sk, to);
	return false;
}

#define SOL_SOCKET 1
#define SO_REUSEADDR 2
#define SO_REUSEPORT 15

static __always_inline bool is_set(struct bpf_sock_addr *ctx, int option)
{
	int is = 0;
	return !bpf_getsockopt(ctx, SOL_SOCKET, option, &is, sizeof(is)) && is;
}

/* Whether others may have the port of a UDP socket, too: the kernel gives them answers that are for this one, and to them an
 * endpoint is nobody's. Any number of them may be connected from one address to one endpoint, and of these the kernel finds
 * one when they are to be ended. Of UDP either option allows that, to those that are not bound as well: they get a port when
 * they connect, and say among which ones (IP_LOCAL_PORT_RANGE). */
static __always_inline bool shares_port(struct bpf_sock_addr *ctx)
{
	return is_set(ctx, SO_REUSEPORT) || is_set(ctx, SO_REUSEADDR);
}

/* A UDP socket that is connected, and connects once more. Where that fails it stays connected to what it was, and nobody
 * tells us. So it keeps the endpoint that it has for this service, or nothing is decided. */
static __always_inline bool connecting_again(struct bpf_sock *sk, struct address *to)
{
	struct conn *conn = conn_of(sk);
	if (!conn || !same(&conn->service, to))
		return false;
	struct endpoint *endpoint = bpf_map_lookup_elem(&endpoints, &conn->id);
	if (!endpoint || endpoint->incarnation != conn->incarnation)
		return false;
	*to = conn->endpoint;
	return true;
}

/* Nothing is decided about a socket that may have been connected to a service before. One of UDP may stay connected to that
 * one's endpoint, if this fails, and is known by it then. */
static __always_inline enum decision leaving_alone(struct bpf_sock *sk, const struct address *to, __u8 protocol)
{
	struct conn *conn = protocol == IPPROTO_UDP ? bpf_sk_storage_get(&conns, sk, 0, 0) : 0;
	if (!conn || same(&conn->endpoint, to))
		bpf_sk_storage_delete(&conns, sk);
	return PASS;
}

static __always_inline enum decision connecting(struct bpf_sock_addr *ctx, struct address *to)
{
	struct bpf_sock *sk = ctx->sk;
	__u8 protocol = service_protocol(ctx);
	struct client client;
	if (!protocol || !sk || !find_client(&client, ctx))
		return PASS;
	__u64 outcome = outcome_of(sk, to, protocol, &client);
	__u8 verdict = verdict_of(outcome);
	if (verdict != VERDICT_RELAY && has_sidecar(ctx, to, &client))
		return leaving_alone(sk, to, protocol);
	if (protocol == IPPROTO_UDP) {
		/* To be refused is a datagram's: the kernel connects a socket whoever is there. */
		if (verdict != VERDICT_BALANCE || !will_be_ended(&client) || shares_port(ctx))
			return leaving_alone(sk, to, protocol);
		if (sk->state == BPF_TCP_ESTABLISHED)
			return connecting_again(sk, to) ? TRANSLATE : leaving_alone(sk, to, protocol);
	}
	if (verdict == VERDICT_REFUSE)
		return REFUSE;
	if (verdict != VERDICT_BALANCE || is_bound(sk, &client))
		return leaving_alone(sk, to, protocol);
	struct choice choice;
	struct set *set = set_of(outcome);
	if (!set)
		return leaving_alone(sk, to, protocol);
	/* What a process of the node sends through a device of its choice comes to no relay. */
	bool has_relay = !client.is_node || !sk->bound_dev_if;
	/* Read once. */
	__u32 rule = *(volatile __u32 *)&set->rule;
	bool is_kept = rule & SET_KEPT;
	if (is_kept && pick_kept(sk, to, &client, rule, &choice))
		goto picked;
	if (is_kept && has_relay)
		return PASS;
	if (!pick(set, to, &choice))
		return leaving_alone(sk, to, protocol);
	if (protocol == IPPROTO_TCP && !is_to_be_translated(&choice, client.meta, has_relay))
		return leaving_alone(sk, to, protocol);
picked:;
	struct conn *conn = bpf_sk_storage_get(&conns, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!conn)
		return PASS;
	conn->service = *to;
	address_of(&conn->endpoint, choice.endpoint);
	conn->id = choice.id;
	conn->incarnation = choice.endpoint->incarnation;
	conn->since_ns = bpf_ktime_get_ns();
	*to = conn->endpoint;
	/* One of TCP counts once it has come about. */
	if (protocol == IPPROTO_UDP)
		count_connection(choice.id);
	return TRANSLATE;
}

SEC("cgroup/connect4")
int sluice_connect4(struct bpf_sock_addr *ctx)
{
	struct address to;
	read4(&to, ctx);
	enum decision decision = connecting(ctx, &to);
	if (decision == TRANSLATE)
		write4(ctx, &to);
	return answer(decision);
}

SEC("cgroup/connect6")
int sluice_connect6(struct bpf_sock_addr *ctx)
{
	struct address to;
	read6(&to, ctx);
	enum decision decision = connecting(ctx, &to);
	if (decision == TRANSLATE)
		write6(ctx, &to);
	return answer(decision);
}

/* Whether a socket is connected to the endpoint of a service: then `peer` becomes the service. */
static __always_inline bool service_of_conn(struct bpf_sock *sk, struct address *peer)
{
	struct conn *conn = conn_of(sk);
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
