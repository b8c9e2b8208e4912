/* Datagrams of sockets that are not connected: sendmsg(2) and recvmsg(2).
 *
 * A socket keeps to the endpoint that it was given for a service until that endpoint goes, or nothing was said for a
 * while. It may talk to several services; each of the last seven endpoints is known when it answers. */
#pragma once

#include "connect.h"

/* How long a flow keeps its endpoint while nothing is sent or received. */
static __always_inline __u64 idle_ns(const struct meta *m)
{
	__u64 most = ~0ull >> 1;
	return m->flow_idle_ns && m->flow_idle_ns < most ? m->flow_idle_ns : most;
}

/* Whether nothing was said for that long. Other threads may have written a moment that is later than ours. */
static __always_inline bool is_idle(const struct flow *flow, __u64 now, __u64 idle)
{
	return (__s64)(now - flow->last_ns) > (__s64)idle;
}

static __always_inline bool is_current(const struct flow *flow)
{
	struct endpoint *endpoint = bpf_map_lookup_elem(&endpoints, &flow->id);
	return endpoint && endpoint->incarnation == flow->incarnation;
}

/* One of a socket that is connected says where to all the same: a program may, and the kernel does with every datagram of
 * IPv4 that a socket of IPv6 sends. The kernel takes answers from its peer only. So what is for the service that the
 * socket is connected to is for the same endpoint, and about all else nothing is decided. */
static __always_inline enum decision sending_connected(struct bpf_sock *sk, struct address *to)
{
	struct conn *conn = conn_of(sk);
	if (!conn || !same(&conn->service, to))
		return PASS;
	*to = conn->endpoint;
	return TRANSLATE;
}

/* `from` is what the datagram says that it is from (IP_PKTINFO), else what the socket is bound to. */
static __always_inline enum decision sending(struct bpf_sock_addr *ctx, struct address *to, const __u32 from[4])
{
	struct bpf_sock *sk = ctx->sk;
	if (!sk || ctx->protocol != IPPROTO_UDP)
		return PASS;
	if (sk->state == BPF_TCP_ESTABLISHED)
		return sending_connected(sk, to);
	struct client client;
	if (!find_client(&client, ctx))
		return PASS;
	__u64 outcome = outcome_of(sk, to, IPPROTO_UDP, &client);
	__u8 verdict = verdict_of(outcome);
	if (verdict == VERDICT_RELAY || (verdict == VERDICT_BALANCE && is_bound(sk, &client)))
		return PASS;
	/* A program may say so only once it has an answer: the flow that it has goes on. */
	bool may_begin = verdict == VERDICT_BALANCE && !is_to_be_kept(from, &client);
	struct flows *known = bpf_sk_storage_get(&flows, sk, 0, may_begin ? BPF_SK_STORAGE_GET_F_CREATE : 0);
	if (!known && verdict == VERDICT_BALANCE)
		return PASS;

	struct flow flow = {};
	bool is_known = false;
	__u64 now = bpf_ktime_get_coarse_ns(), idle = idle_ns(client.meta);
	if (known) {
		bpf_spin_lock(&known->lock);
		for (int i = 0; i < FLOWS_CURRENT; i++) {
			if (!same(&known->flow[i].service, to))
				continue;
			flow = known->flow[i];
			is_known = !is_idle(&flow, now, idle);
			if (is_known) {
				known->flow[i].last_ns = now;
				known->last = i;
			}
			break;
		}
		bpf_spin_unlock(&known->lock);
	}
	/* One goes on although there is none for others: its endpoint serves those that it has. */
	if (is_known && is_current(&flow)) {
		*to = flow.endpoint;
		return TRANSLATE;
	}

	if (has_sidecar(ctx, to, &client))
		return PASS;
	if (verdict == VERDICT_REFUSE)
		return REFUSE;
	struct choice choice;
	struct set *set = set_of(outcome);
	if (!may_begin || !known || !set || shares_port(ctx) || !pick(set, to, &choice))
		return PASS;
	flow.service = *to;
	address_of(&flow.endpoint, choice.endpoint);
	flow.id = choice.id;
	flow.incarnation = choice.endpoint->incarnation;
	flow.last_ns = now;
	bpf_spin_lock(&known->lock);
	/* In the place of the one to the same service, or of the one that was silent for longest. */
	__u32 at = 0;
	bool is_anothers = false;
	/* Displaced flows may still be answered, too. */
	for (int i = 0; i < FLOWS_CURRENT + FLOWS_OLD; i++)
		is_anothers |= same(&known->flow[i].endpoint, &flow.endpoint) && !same(&known->flow[i].service, to) &&
			       !is_idle(&known->flow[i], now, idle);
	/* Nothing would tell whose an answer is. */
	if (is_anothers) {
		bpf_spin_unlock(&known->lock);
		return PASS;
	}
	for (int i = 0; i < FLOWS_CURRENT; i++) {
		if (same(&known->flow[i].service, to)) {
			at = i;
			break;
		}
		if ((__s64)(known->flow[i].last_ns - known->flow[at & (FLOWS_CURRENT - 1)].last_ns) < 0)
			at = i;
	}
	at &= FLOWS_CURRENT - 1;
	if (known->flow[at].service.port) {
		__u32 old = known->old < FLOWS_OLD ? known->old : 0;
		known->old = old + 1;
		known->flow[FLOWS_CURRENT + old] = known->flow[at];
		/* Answers to it are late from now on, unless nobody waits for any. */
		if (!is_idle(&known->flow[at], now, idle))
			known->flow[FLOWS_CURRENT + old].last_ns = now;
	}
	known->flow[at] = flow;
	known->last = at;
	bpf_spin_unlock(&known->lock);
	*to = flow.endpoint;
	count_connection(choice.id);
	return TRANSLATE;
}

/* Whether a datagram is the answer of a service, as far as one can tell: then `from` becomes the service. After a silence it
 * is not: by then the address may be another pod's. */
static __always_inline bool service_of_flow(struct bpf_sock *sk, struct address *from)
{
	struct flows *known = bpf_sk_storage_get(&flows, sk, 0, 0);
	__u32 zero = 0;
	struct meta *m = bpf_map_lookup_elem(&meta, &zero);
	if (!known || !m)
		return false;
	struct flow flow = {};
	__u32 at = FLOWS_CURRENT + FLOWS_OLD;
	__u64 now = bpf_ktime_get_coarse_ns(), idle = idle_ns(m);
	bpf_spin_lock(&known->lock);
	/* Two services may have one endpoint: an answer is to what was asked last. */
	__u32 last = known->last % FLOWS_CURRENT;
	if (same(&known->flow[last].endpoint, from) && !is_idle(&known->flow[last], now, idle)) {
		flow = known->flow[last];
		at = last;
	}
	for (__u32 i = 0; i < FLOWS_CURRENT + FLOWS_OLD; i++) {
		if (at < FLOWS_CURRENT + FLOWS_OLD)
			break;
		if (!same(&known->flow[i].endpoint, from) || is_idle(&known->flow[i], now, idle))
			continue;
		flow = known->flow[i];
		at = i;
	}
	bpf_spin_unlock(&known->lock);
	if (at >= FLOWS_CURRENT + FLOWS_OLD)
		return false;
	/* What comes from an endpoint that went is late, and keeps nothing. If the place is another flow's by now, that has
	 * just begun. */
	if (is_current(&flow))
		*(volatile __u64 *)&known->flow[at].last_ns = now;
	*from = flow.service;
	return true;
}

SEC("cgroup/sendmsg4")
int sluice_sendmsg4(struct bpf_sock_addr *ctx)
{
	struct address to;
	read4(&to, ctx);
	__u32 from[4] = { 0, 0, bpf_htonl(0xffff), ctx->msg_src_ip4 };
	enum decision decision = sending(ctx, &to, from);
	if (decision == TRANSLATE)
		write4(ctx, &to);
	return answer(decision);
}

SEC("cgroup/sendmsg6")
int sluice_sendmsg6(struct bpf_sock_addr *ctx)
{
	struct address to;
	read6(&to, ctx);
	__u32 from[4] = { ctx->msg_src_ip6[0], ctx->msg_src_ip6[1], ctx->msg_src_ip6[2], ctx->msg_src_ip6[3] };
	enum decision decision = sending(ctx, &to, from);
	if (decision == TRANSLATE)
		write6(ctx, &to);
	return answer(decision);
}

SEC("cgroup/recvmsg4")
int sluice_recvmsg4(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct address from;
	read4(&from, ctx);
	if (sk && (service_of_conn(sk, &from) || service_of_flow(sk, &from)))
		write4(ctx, &from);
	return 1;
}

SEC("cgroup/recvmsg6")
int sluice_recvmsg6(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct address from;
	read6(&from, ctx);
	if (sk && (service_of_conn(sk, &from) || service_of_flow(sk, &from)))
		write6(ctx, &from);
	return 1;
}
