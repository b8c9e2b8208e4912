/* What becomes of a connection or a datagram to an address: the decision, which touches no socket. */
#pragma once

#include "address.h"
#include "maps.h"

enum decision {
	PASS, /* as it is; rules and relay do the rest */
	REFUSE,
	TRANSLATE,
};

struct choice {
	__u32 id;
	struct endpoint *endpoint;
	__u64 desc;
	__u64 turn;
};

#define NSEC_PER_SEC 1000000000ull
/* An agent beats four times a second. */
#define ALIVE_NS (2 * NSEC_PER_SEC)
/* How many endpoints are looked at for one that has not failed. */
#define TRIES 8

/* Whose socket it is. */
struct client {
	const struct meta *meta;
	__u64 namespace; /* of the network, by cookie */
	bool is_node; /* of the node's own network */
};

/* False only if a map has no element, which an array has. */
static __always_inline bool find_client(struct client *client, struct bpf_sock_addr *ctx)
{
	__u32 zero = 0;
	client->meta = bpf_map_lookup_elem(&meta, &zero);
	if (!client->meta)
		return false;
	client->namespace = bpf_get_netns_cookie(ctx);
	client->is_node = client->namespace == client->meta->host_cookie;
	return true;
}

/* Whether there is a relay. */
static __always_inline bool is_agent_alive(const struct meta *m)
{
	__u64 now = bpf_ktime_get_ns();
	/* It may have been written since. */
	return (__s64)(now - *(volatile __u64 *)&m->heartbeat_ns) < (__s64)ALIVE_NS;
}

/* Whether a socket is in a network that is neither the node's nor a pod's: that of a container within a pod, say,
 * whose cluster has Services of its own at the same addresses. What of it passes this node the rules see. With no
 * agent alive nobody tells of new pods, and there is no relay: then one that nothing is known of counts as a pod's.
 * One of a pod that is to be left alone is known to be. */
static __always_inline bool is_stranger(const struct client *client)
{
	if (client->is_node || !(*(volatile __u32 *)&client->meta->flags & META_KNOWN_ONLY))
		return false;
	const __u8 *is_led = bpf_map_lookup_elem(&namespaces, &client->namespace);
	return is_led ? !*is_led : is_agent_alive(client->meta);
}

static __always_inline __u32 hash_words(const void *from, int count)
{
	const __u32 *words = from;
	__u32 hash = 0;
	for (int i = 0; i < count; i++)
		hash = (hash ^ words[i]) * 0x9e3779b1;
	return hash;
}

/* A hash of a key of five words; the Rust side has the same. */
static __always_inline __u32 hash_of(const void *key)
{
	return hash_words(key, 5);
}

/* Its upper bits, for the check in outcomes. */
static __always_inline __u32 check_of(const struct frontend_key *key)
{
	return hash_of(key) >> (OUTCOME_CHECK_SHIFT - 32);
}

/* What the table says of a frontend, for a client: 0 if it is none.
 *
 * The element of a hash map may be taken for another key while we read it. So an outcome is read in one piece and
 * has to have the check value of our key. */
static __always_inline __u64 frontend(const struct address *to, __u8 protocol, const struct client *client)
{
	struct frontend_key key = { .port = to->port, .protocol = protocol };
	key.ip[0] = to->ip[0];
	key.ip[1] = to->ip[1];
	key.ip[2] = to->ip[2];
	key.ip[3] = to->ip[3];
	struct frontend_value *value = bpf_map_lookup_elem(&frontends, &key);
	if (!value)
		return 0;
	__u64 word = *(volatile __u64 *)(client->is_node ? &value->node : &value->pod);
	return word >> OUTCOME_CHECK_SHIFT == check_of(&key) ? word : 0;
}

static __always_inline __u8 verdict_of(__u64 outcome)
{
	return outcome >> OUTCOME_VERDICT_SHIFT & OUTCOME_VERDICT;
}

/* Takes the endpoint in the slot of a turn. */
static __always_inline bool take(struct choice *choice)
{
	__u32 slot = (choice->desc >> 32) + choice->turn % (choice->desc >> 16 & 0xffff);
	__u32 line = slot / SLOTS_PER_LINE;
	struct slot_line *ids = bpf_map_lookup_elem(&slots, &line);
	if (!ids)
		return false;
	choice->id = *(volatile __u32 *)&ids->ids[slot % SLOTS_PER_LINE];
	choice->endpoint = bpf_map_lookup_elem(&endpoints, &choice->id);
	return choice->endpoint != 0;
}

/* The set of an outcome. */
static __always_inline struct set *set_of(__u64 outcome)
{
	__u32 id = outcome & OUTCOME_SET;
	return bpf_map_lookup_elem(&sets, &id);
}

/* The endpoint whose turn it is. False where there is none, or it cannot be had from here. */
static __always_inline bool pick(struct set *set, const struct address *to, struct choice *choice)
{
	/* The writer flips it in one piece. Volatile: read once. */
	choice->desc = *(volatile __u64 *)&set->desc;
	if (!(choice->desc >> 16 & 0xffff))
		return false;
	__u64 turn = set->rule & SET_RANDOM ? bpf_get_prandom_u32() : __sync_fetch_and_add(&set->cursor, 1);
	choice->turn = turn + (choice->desc & 0xffff);
	if (!take(choice))
		return false;
	return !(choice->endpoint->flags & ENDPOINT_V4) != is_v4(to->ip);
}

/* Whether an endpoint is one that connections may fail at. */
static __always_inline bool is_doubtful(const struct endpoint *endpoint)
{
	return endpoint->flags & ENDPOINT_UNPROVEN || *(volatile __u64 *)&endpoint->failures;
}

/* Whether a connection to the endpoint of choice is to be made from here. An endpoint that is in doubt is left to
 * the relay, which tries another one before the client notices. With no agent alive there is no relay: then those
 * that have failed of late are passed over, as long as there are others. */
static __always_inline bool is_to_be_translated(struct choice *choice, const struct meta *m, bool has_relay)
{
	if (!is_doubtful(choice->endpoint))
		return true;
	if (has_relay && is_agent_alive(m))
		return false;
	__u64 now = bpf_ktime_get_ns();
	struct choice next = *choice;
	for (int i = 0; i < TRIES; i++) {
		if (*(volatile __u64 *)&next.endpoint->failures <= now) {
			choice->id = next.id;
			choice->endpoint = next.endpoint;
			break;
		}
		next.turn++;
		if (!take(&next))
			break;
	}
	return true;
}

static __always_inline void address_of(struct address *to, const struct endpoint *endpoint)
{
	*to = (struct address){ .port = endpoint->port };
	to->ip[0] = endpoint->ip[0];
	to->ip[1] = endpoint->ip[1];
	to->ip[2] = endpoint->ip[2];
	to->ip[3] = endpoint->ip[3];
}

/* The relay's own sockets are not to come back to it. */
static __always_inline bool is_relay(struct bpf_sock *sk, const struct meta *m)
{
	/* The upper half is left to others, as in the rules. */
	return m->relay_mark && (sk->mark & 0xffff) == m->relay_mark;
}

static __always_inline void count_connection(__u32 id)
{
	struct account *account = bpf_map_lookup_elem(&accounts, &id);
	if (account)
		__sync_fetch_and_add(&account->connections, 1);
}

/* What a hook returns. Refused is -ECONNREFUSED; without that the caller would see EPERM. */
static __always_inline int answer(enum decision decision)
{
	if (decision != REFUSE)
		return 1;
	bpf_set_retval(-111);
	return 0;
}
