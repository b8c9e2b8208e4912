/* Datagrams of sockets that are not connected: sendmsg(2) and recvmsg(2).
 *
 * A socket keeps to the endpoint that it was given for a service until that endpoint goes, or nothing was said for a
 * while. It may talk to several services; each of the last eight endpoints is known when it answers. */
#pragma once

#include "connect.h"

/* How long a flow keeps its endpoint while nothing is sent or received. */
static __always_inline __u64 idle_ns(const struct meta *m)
{
	return m->flow_idle_ns ? m->flow_idle_ns : ~0ull;
}

static __always_inline enum decision sending(struct bpf_sock_addr *ctx, struct address *to)
{
	struct bpf_sock *sk = ctx->sk;
	if (!sk || ctx->protocol != IPPROTO_UDP)
		return PASS;
	/* A connected socket of IPv6 that sends to an IPv4 endpoint comes here with every datagram. */
	if (sk->family == AF_INET6) {
		struct conn *conn = bpf_sk_storage_get(&conns, sk, 0, 0);
		if (conn && same(&conn->endpoint, to))
			return PASS;
	}
	struct client client;
	if (!find_client(&client, ctx))
		return PASS;
	__u64 outcome = outcome_of(sk, to, IPPROTO_UDP, &client);
	__u8 verdict = verdict_of(outcome);
	if (verdict == VERDICT_REFUSE)
		return has_sidecar(ctx, to, &client) ? PASS : REFUSE;
	if (verdict != VERDICT_BALANCE || bound_to_loopback(sk))
		return PASS;
	struct flows *known = bpf_sk_storage_get(&flows, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!known)
		return PASS;

	struct flow flow = {};
	__u32 at = FLOWS_CURRENT;
	__u64 now = bpf_ktime_get_coarse_ns(), idle = idle_ns(client.meta);
	bool is_idle = false;
	bpf_spin_lock(&known->lock);
	for (int i = 0; i < FLOWS_CURRENT; i++) {
		if (!same(&known->flow[i].service, to))
			continue;
		at = i;
		flow = known->flow[i];
		is_idle = now - flow.last_ns > idle;
		if (!is_idle)
			known->flow[i].last_ns = now;
		known->last = i;
		break;
	}
	bpf_spin_unlock(&known->lock);
	if (at < FLOWS_CURRENT && !is_idle) {
		struct endpoint *endpoint = bpf_map_lookup_elem(&endpoints, &flow.id);
		if (endpoint && endpoint->incarnation == flow.incarnation) {
			*to = flow.endpoint;
			return TRANSLATE;
		}
	}

	struct choice choice;
	if (has_sidecar(ctx, to, &client) || !pick(outcome, to, &choice))
		return PASS;
	flow.service = *to;
	address_of(&flow.endpoint, choice.endpoint);
	flow.id = choice.id;
	flow.incarnation = choice.endpoint->incarnation;
	flow.last_ns = now;
	bpf_spin_lock(&known->lock);
	if (at >= FLOWS_CURRENT)
		at = known->current++ % FLOWS_CURRENT;
	at &= FLOWS_CURRENT - 1;
	if (known->flow[at].service.port)
		known->flow[FLOWS_CURRENT + known->old++ % FLOWS_OLD] = known->flow[at];
	known->flow[at] = flow;
	known->last = at;
	bpf_spin_unlock(&known->lock);
	*to = flow.endpoint;
	count_connection(choice.id);
	return TRANSLATE;
}

static __always_inline bool service_of_flow(struct bpf_sock *sk, struct address *from)
{
	struct flows *known = bpf_sk_storage_get(&flows, sk, 0, 0);
	if (!known)
		return false;
	bool found = false;
	struct address service = {};
	__u64 now = bpf_ktime_get_coarse_ns();
	bpf_spin_lock(&known->lock);
	/* Two services may have one endpoint: an answer is to what was asked last. */
	struct flow *last = &known->flow[known->last % FLOWS_CURRENT];
	if (same(&last->endpoint, from)) {
		service = last->service;
		last->last_ns = now;
		found = true;
	}
	for (int i = 0; i < FLOWS_CURRENT + FLOWS_OLD; i++) {
		if (found)
			break;
		if (!same(&known->flow[i].endpoint, from))
			continue;
		service = known->flow[i].service;
		known->flow[i].last_ns = now;
		found = true;
	}
	bpf_spin_unlock(&known->lock);
	if (found)
		*from = service;
	return found;
}

SEC("cgroup/sendmsg4")
int sluice_sendmsg4(struct bpf_sock_addr *ctx)
{
	struct address to;
	read4(&to, ctx);
	enum decision decision = sending(ctx, &to);
	if (decision == TRANSLATE)
		write4(ctx, &to);
	return answer(decision);
}

SEC("cgroup/sendmsg6")
int sluice_sendmsg6(struct bpf_sock_addr *ctx)
{
	struct address to;
	read6(&to, ctx);
	enum decision decision = sending(ctx, &to);
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
