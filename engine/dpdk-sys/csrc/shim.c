/*
 * Everything that needs DPDK's headers: its structs and inline functions. Rust calls in here once for a burst.
 *
 * An mbuf's header belongs to the frame of the same number for the life of the process: header i stands at a fixed distance from header 0, and its
 * buffer is frame i of the engine's arena. To DPDK it is an ordinary, direct mbuf of an ordinary pool. The pool keeps nothing itself: what a
 * driver takes and gives comes from and goes to the arena, by `take` and `give`. A field of the header says which port has the frame.
 */
/* rte_dev_dma_map became part of the stable interface after 22.11, as it was. */
#define ALLOW_EXPERIMENTAL_API

#include "shim.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>
#include <rte_mbuf_dyn.h>
#include <rte_mempool.h>
#include <rte_version.h>

#define OPS_NAME "patronus"

/* Frames that are asked for together at most. */
#define SOME 512

/* Bytes from one header to the next: DPDK's part before it, and the header. An odd number of cache lines, so that they share no set. */
#define HEADER_STRIDE (3 * RTE_CACHE_LINE_SIZE)

/* Who has a frame: the engine, somebody outside of a call of ours, or port n - 2. */
#define OWNER_ENGINE 0u
#define OWNER_UNKNOWN 1u
#define OWNER_PORT 2u

/* Bits of pd_info's offloads. */
#define OFFLOAD_IPV4 1u
#define OFFLOAD_UDP 2u
#define OFFLOAD_TCP 4u
#define OFFLOAD_SEGMENTS 8u

/* Bits of pd_frame's flags. */
#define FRAME_BAD 1u
#define FRAME_MORE 2u

static struct rte_mempool *pool;
static uintptr_t first_header;
static int owner_at;
static struct pd_memory arena;
static uint8_t removed[RTE_MAX_ETHPORTS];

/* What the calling thread does at the moment: for which port, and the worker's free frames, the last one freed on top. */
static __thread struct {
	const struct pd_cache *cache;
	uint32_t owner;
} here __attribute__((tls_model("initial-exec")));

static inline uint32_t *owner_of(struct rte_mbuf *m)
{
	return RTE_MBUF_DYNFIELD(m, owner_at, uint32_t *);
}

static inline uint32_t frame_of(const struct rte_mbuf *m)
{
	/* Fewer than 2^32 cache lines. */
	return (uint32_t)(((uintptr_t)m - first_header) / RTE_CACHE_LINE_SIZE) / (HEADER_STRIDE / RTE_CACHE_LINE_SIZE);
}

static inline struct rte_mbuf *header_of(uint32_t frame)
{
	return (struct rte_mbuf *)(first_header + (uintptr_t)frame * HEADER_STRIDE);
}

static inline void own(struct rte_mbuf *m, uint32_t owner)
{
	/* Others only look, to count: pd_held. */
	__atomic_store_n(owner_of(m), owner, __ATOMIC_RELAXED);
}

/* An mbuf that somebody gives up. A frame with two owners would be somebody else's packet next. */
static inline uint32_t give_up(struct rte_mbuf *m)
{
	if (unlikely(*owner_of(m) == OWNER_ENGINE))
		rte_panic("a driver gave frame %u back twice\n", frame_of(m));
	own(m, OWNER_ENGINE);
	return frame_of(m);
}

static inline void begin(uint16_t port, const struct pd_cache *cache)
{
	here.cache = cache;
	here.owner = OWNER_PORT + port;
}

static inline void end(void)
{
	here.cache = NULL;
	here.owner = OWNER_ENGINE;
}

/* The rare ways: the worker's stack is empty or full, or there is no worker. */
static __rte_noinline unsigned int take(uint32_t *frames, unsigned int count)
{
	return arena.take(here.cache ? here.cache->cache : NULL, frames, count);
}

static __rte_noinline void give(uint32_t frame)
{
	arena.give(here.cache ? here.cache->cache : NULL, &frame, 1);
}

/* --- The pool's operations: called by drivers, mostly inside of a call of ours, sometimes by threads of DPDK's. --- */

static int ops_alloc(struct rte_mempool *mp)
{
	return 0;
}

static void ops_free(struct rte_mempool *mp)
{
}

static int ops_enqueue(struct rte_mempool *mp, void *const *objects, unsigned int count)
{
	const struct pd_cache *cache = here.cache;
	unsigned int i;

	for (i = 0; i < count; i++) {
		uint32_t frame = give_up(objects[i]);

		if (likely(cache != NULL && *cache->len < cache->limit))
			cache->free[(*cache->len)++] = frame;
		else
			give(frame);
	}
	return 0;
}

static int ops_dequeue(struct rte_mempool *mp, void **objects, unsigned int count)
{
	const struct pd_cache *cache = here.cache;
	uint32_t owner = here.owner == OWNER_ENGINE ? OWNER_UNKNOWN : here.owner;
	uint32_t some[SOME];
	unsigned int i, done, now;

	for (done = 0; done < count; done += now) {
		const uint32_t *frames = some;

		now = RTE_MIN(count - done, (unsigned int)SOME);
		if (likely(cache != NULL && *cache->len >= now)) {
			*cache->len -= now;
			frames = cache->free + *cache->len;
		} else if (take(some, now) != now) {
			ops_enqueue(mp, objects, done);
			return -ENOBUFS;
		}
		for (i = 0; i < now; i++) {
			struct rte_mbuf *m = header_of(frames[i]);

			own(m, owner);
			objects[done + i] = m;
		}
	}
	return 0;
}

static unsigned int ops_count(const struct rte_mempool *mp)
{
	return arena.count - pd_held(arena.count, UINT16_MAX);
}

/* Headers at a fixed distance, and none is given to the pool: the frames are where they were. */
static int ops_populate(struct rte_mempool *mp, unsigned int most, void *start, rte_iova_t iova, size_t len,
			rte_mempool_populate_obj_cb_t *each, void *argument)
{
	size_t stride = mp->header_size + mp->elt_size + mp->trailer_size;
	unsigned int i;

	for (i = 0; i < most && (i + 1) * stride <= len; i++)
		each(mp, argument, (char *)start + i * stride + mp->header_size, RTE_BAD_IOVA);
	return i;
}

static struct rte_mempool_ops ops = {
	.name = OPS_NAME,
	.alloc = ops_alloc,
	.free = ops_free,
	.enqueue = ops_enqueue,
	.dequeue = ops_dequeue,
	.get_count = ops_count,
	.populate = ops_populate,
};

/* --- Start --- */

int pd_init(int argc, char **argv)
{
	return rte_eal_init(argc, argv) < 0 ? -rte_errno : 0;
}

const char *pd_version(void)
{
	return rte_version();
}

/* Bytes from one header to the next: what a pool puts before each, and the header. */
size_t pd_header_size(void)
{
	struct rte_mempool_objsz size;

	return rte_mempool_calc_obj_size(sizeof(struct rte_mbuf), RTE_MEMPOOL_F_NO_SPREAD, &size);
}

/* Where a device finds a frame; RTE_BAD_IOVA if that is in two places. */
static rte_iova_t place_of(const char *frame, size_t len)
{
	rte_iova_t at;

	if (rte_eal_iova_mode() == RTE_IOVA_VA)
		return (uintptr_t)frame;
	at = rte_mem_virt2iova(frame);
	if (at == RTE_BAD_IOVA || rte_mem_virt2iova(frame + len - 1) != at + len - 1)
		return RTE_BAD_IOVA;
	return at;
}

/* Tells DPDK of memory that it did not make, so that it can be mapped for devices. */
static int register_frames(void)
{
	unsigned int i, pages = arena.frames_len / arena.page;
	rte_iova_t *places = calloc(pages, sizeof(*places));
	int rc;

	if (places == NULL)
		return -ENOMEM;
	for (i = 0; i < pages; i++)
		places[i] = place_of((char *)arena.frames + i * arena.page, arena.page);
	rc = rte_extmem_register(arena.frames, arena.frames_len, places, pages, arena.page);
	free(places);
	return rc == 0 ? 0 : -rte_errno;
}

static int make_pool(void)
{
	struct rte_pktmbuf_pool_private private = {.mbuf_data_room_size = arena.room};
	int rc;

	pool = rte_mempool_create_empty("patronus", arena.count, sizeof(struct rte_mbuf), 0, sizeof(private), SOCKET_ID_ANY,
					RTE_MEMPOOL_F_NO_SPREAD | RTE_MEMPOOL_F_NO_IOVA_CONTIG);
	if (pool == NULL)
		return -rte_errno;
	rc = rte_mempool_set_ops_byname(pool, OPS_NAME, NULL);
	if (rc < 0)
		return rc;
	rte_pktmbuf_pool_init(pool, &private);
	rc = rte_mempool_populate_iova(pool, arena.headers, RTE_BAD_IOVA, arena.headers_len, NULL, NULL);
	return rc < 0 ? rc : rc == (int)arena.count ? 0 : -ENOMEM;
}

static void init_headers(void)
{
	uint32_t i;

	for (i = 0; i < arena.count; i++) {
		struct rte_mbuf *m = header_of(i);

		memset(m, 0, sizeof(*m));
		m->buf_addr = (char *)arena.frames + i * arena.stride;
		m->buf_len = arena.room;
		rte_mbuf_iova_set(m, place_of(m->buf_addr, arena.room));
		m->data_off = arena.headroom;
		m->pool = pool;
		m->nb_segs = 1;
		m->port = RTE_MBUF_PORT_INVALID;
		rte_mbuf_refcnt_set(m, 1);
	}
}

int pd_pool(const struct pd_memory *memory)
{
	static const struct rte_mbuf_dynfield field = {
		.name = "patronus_owner",
		.size = sizeof(uint32_t),
		.align = sizeof(uint32_t),
	};
	int rc;

	arena = *memory;
	owner_at = rte_mbuf_dynfield_register(&field);
	if (owner_at < 0)
		return -rte_errno;
	rc = rte_mempool_register_ops(&ops);
	if (rc < 0)
		return rc;
	rc = register_frames();
	if (rc < 0)
		return rc;
	rc = make_pool();
	if (rc < 0)
		return rc;
	if (pool->header_size + pool->elt_size + pool->trailer_size != HEADER_STRIDE)
		return -EPROTO;
	first_header = (uintptr_t)arena.headers + pool->header_size;
	init_headers();
	return 0;
}

int pd_is_placed(uint32_t frame)
{
	return rte_mbuf_iova_get(header_of(frame)) != RTE_BAD_IOVA;
}

uint32_t pd_held(uint32_t count, uint16_t port)
{
	uint32_t i, held = 0;

	for (i = 0; i < count; i++) {
		uint32_t owner = __atomic_load_n(owner_of(header_of(i)), __ATOMIC_RELAXED);

		held += port == UINT16_MAX ? owner != OWNER_ENGINE : owner == OWNER_PORT + (uint32_t)port;
	}
	return held;
}

/* --- Devices. Called by one thread at a time, none of them a worker. --- */

int pd_attach(const char *bus, const char *device, const char *arguments)
{
	return rte_eal_hotplug_add(bus, device, arguments);
}

int pd_detach(const char *bus, const char *device)
{
	return rte_eal_hotplug_remove(bus, device);
}

int pd_find(const char *device, uint16_t *port)
{
	return rte_eth_dev_get_port_by_name(device, port);
}

static uint32_t offloads(uint64_t found, uint64_t ipv4, uint64_t udp, uint64_t tcp, uint64_t segments)
{
	return (found & ipv4 ? OFFLOAD_IPV4 : 0) | (found & udp ? OFFLOAD_UDP : 0) | (found & tcp ? OFFLOAD_TCP : 0) |
	       (found & segments ? OFFLOAD_SEGMENTS : 0);
}

int pd_info(uint16_t port, struct pd_info *info)
{
	struct rte_eth_dev_info found;
	struct rte_ether_addr mac;
	int rc = rte_eth_dev_info_get(port, &found);

	if (rc < 0)
		return rc;
	memset(info, 0, sizeof(*info));
	rc = rte_eth_dev_get_name_by_port(port, info->name);
	if (rc < 0)
		return rc;
	rte_strscpy(info->driver, found.driver_name, sizeof(info->driver));
	if (rte_eth_macaddr_get(port, &mac) == 0)
		memcpy(info->mac, mac.addr_bytes, sizeof(info->mac));
	info->max_queues = RTE_MIN(found.max_rx_queues, found.max_tx_queues);
	info->min_mtu = found.min_mtu;
	info->max_mtu = found.max_mtu;
	info->numa = rte_eth_dev_socket_id(port);
	info->rx_offloads = offloads(found.rx_offload_capa, RTE_ETH_RX_OFFLOAD_IPV4_CKSUM, RTE_ETH_RX_OFFLOAD_UDP_CKSUM,
				     RTE_ETH_RX_OFFLOAD_TCP_CKSUM, RTE_ETH_RX_OFFLOAD_SCATTER);
	info->tx_offloads = offloads(found.tx_offload_capa, RTE_ETH_TX_OFFLOAD_IPV4_CKSUM, RTE_ETH_TX_OFFLOAD_UDP_CKSUM,
				     RTE_ETH_TX_OFFLOAD_TCP_CKSUM, RTE_ETH_TX_OFFLOAD_MULTI_SEGS);
	info->hashes = found.flow_type_rss_offloads != 0;
	return 0;
}

static int on_removal(uint16_t port, enum rte_eth_event_type event, void *argument, void *ret)
{
	if (port < RTE_MAX_ETHPORTS)
		__atomic_store_n(&removed[port], 1, __ATOMIC_RELAXED);
	return 0;
}

int pd_is_removed(uint16_t port)
{
	return port >= RTE_MAX_ETHPORTS || __atomic_load_n(&removed[port], __ATOMIC_RELAXED);
}

/* Lets a device that the IOMMU stands before reach the frames. Others have no such thing, or need none. */
static int map_for(const struct rte_eth_dev_info *info)
{
	if (info->device == NULL || rte_eal_iova_mode() != RTE_IOVA_VA)
		return 0;
	if (rte_dev_dma_map(info->device, arena.frames, (uintptr_t)arena.frames, arena.frames_len) == 0)
		return 0;
	/* Another port of the same group has done it. */
	return rte_errno == ENOTSUP || rte_errno == EEXIST ? 0 : -rte_errno;
}

static void configuration(struct rte_eth_conf *conf, const struct rte_eth_dev_info *info, const struct pd_setup *setup)
{
	memset(conf, 0, sizeof(*conf));
	conf->rxmode.mtu = setup->mtu;
	conf->rxmode.offloads = info->rx_offload_capa & RTE_ETH_RX_OFFLOAD_CHECKSUM;
	conf->txmode.offloads =
		info->tx_offload_capa & (RTE_ETH_TX_OFFLOAD_IPV4_CKSUM | RTE_ETH_TX_OFFLOAD_UDP_CKSUM | RTE_ETH_TX_OFFLOAD_TCP_CKSUM);
	if (setup->mtu + (uint32_t)(RTE_ETHER_HDR_LEN + RTE_ETHER_CRC_LEN) > arena.room - arena.headroom) {
		conf->rxmode.offloads |= info->rx_offload_capa & RTE_ETH_RX_OFFLOAD_SCATTER;
		conf->txmode.offloads |= info->tx_offload_capa & RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
	} else {
		/* All mbufs are of one pool and have one owner, which is what it asks for. */
		conf->txmode.offloads |= info->tx_offload_capa & RTE_ETH_TX_OFFLOAD_MBUF_FAST_FREE;
	}
	if (setup->queues > 1) {
		conf->rx_adv_conf.rss_conf.rss_hf =
			info->flow_type_rss_offloads & (RTE_ETH_RSS_IP | RTE_ETH_RSS_TCP | RTE_ETH_RSS_UDP);
		if (conf->rx_adv_conf.rss_conf.rss_hf != 0)
			conf->rxmode.mq_mode = RTE_ETH_MQ_RX_RSS;
	}
}

static int make_queues(uint16_t port, const struct pd_setup *setup, const struct rte_eth_dev_info *info,
		       const struct rte_eth_conf *conf)
{
	uint16_t rx = setup->descriptors, tx = setup->descriptors, queue;
	struct rte_eth_rxconf rxconf = info->default_rxconf;
	struct rte_eth_txconf txconf = info->default_txconf;
	unsigned int socket = SOCKET_ID_ANY;
	int rc = rte_eth_dev_adjust_nb_rx_tx_desc(port, &rx, &tx);

	if (rc < 0)
		return rc;
	rxconf.offloads = conf->rxmode.offloads;
	txconf.offloads = conf->txmode.offloads;
	if (rte_eth_dev_socket_id(port) >= 0)
		socket = rte_eth_dev_socket_id(port);
	for (queue = 0; queue < setup->queues; queue++) {
		rc = rte_eth_rx_queue_setup(port, queue, rx, socket, &rxconf, pool);
		if (rc == 0)
			rc = rte_eth_tx_queue_setup(port, queue, tx, socket, &txconf);
		if (rc < 0)
			return rc;
	}
	return 0;
}

int pd_setup(uint16_t port, struct pd_setup *setup, const char **step)
{
	struct rte_eth_dev_info info;
	struct rte_eth_conf conf;
	int rc;

	*step = "ask for what the device can do";
	rc = rte_eth_dev_info_get(port, &info);
	if (rc < 0)
		return rc;
	*step = "map the packets' memory for the device";
	rc = map_for(&info);
	if (rc < 0)
		return rc;
	*step = "configure the device";
	configuration(&conf, &info, setup);
	rc = rte_eth_dev_configure(port, setup->queues, setup->queues, &conf);
	if (rc < 0)
		return rc;
	begin(port, NULL);
	*step = "make the device's queues";
	rc = make_queues(port, setup, &info, &conf);
	if (rc == 0) {
		*step = "start the device";
		removed[port] = 0;
		rc = rte_eth_dev_start(port);
	}
	end();
	if (rc < 0)
		return rc;
	/* Not every device can say that it went, nor take other addresses' frames. */
	rte_eth_dev_callback_register(port, RTE_ETH_EVENT_INTR_RMV, on_removal, NULL);
	if (setup->promiscuous)
		rte_eth_promiscuous_enable(port);
	/* The host's: neighbour discovery, routing protocols. */
	rte_eth_allmulticast_enable(port);
	return 0;
}

int pd_close(uint16_t port)
{
	int rc;

	begin(port, NULL);
	rte_eth_dev_callback_unregister(port, RTE_ETH_EVENT_INTR_RMV, on_removal, NULL);
	rc = rte_eth_dev_stop(port);
	if (rc == 0)
		rc = rte_eth_dev_close(port);
	end();
	return rc;
}

int pd_link(uint16_t port, struct pd_link *link)
{
	struct rte_eth_link found;
	int rc = rte_eth_link_get_nowait(port, &found);

	if (rc < 0)
		return rc;
	link->mbps = found.link_speed == RTE_ETH_SPEED_NUM_UNKNOWN ? 0 : found.link_speed;
	link->up = found.link_status == RTE_ETH_LINK_UP;
	link->full_duplex = found.link_duplex == RTE_ETH_LINK_FULL_DUPLEX;
	return 0;
}

int pd_stats(uint16_t port, struct pd_stats *stats)
{
	struct rte_eth_stats found;
	int rc = rte_eth_stats_get(port, &found);

	if (rc < 0)
		return rc;
	*stats = (struct pd_stats){
		.rx_packets = found.ipackets,
		.rx_bytes = found.ibytes,
		.rx_missed = found.imissed,
		.rx_errors = found.ierrors,
		.rx_no_frame = found.rx_nombuf,
		.tx_packets = found.opackets,
		.tx_bytes = found.obytes,
		.tx_errors = found.oerrors,
	};
	return 0;
}

int pd_set_mtu(uint16_t port, uint16_t mtu)
{
	return rte_eth_dev_set_mtu(port, mtu);
}

/* --- Packets. Called by the worker that has the queue. --- */

#define BURST 64

uint16_t pd_receive(uint16_t port, uint16_t queue, const struct pd_cache *cache, struct pd_frame *frames, uint16_t count)
{
	struct rte_mbuf *found[BURST];
	uint16_t i;

	begin(port, cache);
	count = rte_eth_rx_burst(port, queue, found, RTE_MIN(count, BURST));
	for (i = 0; i < count; i++) {
		struct rte_mbuf *m = found[i];
		uint64_t bad = m->ol_flags & (RTE_MBUF_F_RX_IP_CKSUM_MASK | RTE_MBUF_F_RX_L4_CKSUM_MASK);

		frames[i].len = m->pkt_len;
		frames[i].offset = m->data_off;
		frames[i].flags = 0;
		/* The mask's two bits together mean that nobody has looked at what the packet lacks. */
		if (unlikely(bad != 0) && ((bad & RTE_MBUF_F_RX_IP_CKSUM_MASK) == RTE_MBUF_F_RX_IP_CKSUM_BAD ||
					   (bad & RTE_MBUF_F_RX_L4_CKSUM_MASK) == RTE_MBUF_F_RX_L4_CKSUM_BAD))
			frames[i].flags = FRAME_BAD;
		if (unlikely(m->nb_segs > 1)) {
			/* Stays the port's until pd_gather. */
			frames[i].frame = frame_of(m);
			frames[i].flags |= FRAME_MORE;
		} else {
			frames[i].frame = give_up(m);
		}
	}
	end();
	return count;
}

uint32_t pd_gather(uint32_t frame, const struct pd_cache *cache, void *to, uint32_t room)
{
	struct rte_mbuf *head = header_of(frame), *m;
	uint32_t owner = *owner_of(head), len = 0;

	for (m = head; m != NULL && room - len >= m->data_len; m = m->next) {
		memcpy((char *)to + len, rte_pktmbuf_mtod(m, char *), m->data_len);
		len += m->data_len;
	}
	if (m != NULL)
		len = 0;
	begin(owner - OWNER_PORT, cache);
	rte_pktmbuf_free(head);
	end();
	return len;
}

/*
 * What the engine has is as DPDK leaves an mbuf that is free or was received: one segment, none behind it, one reference. So only what differs is
 * written.
 */
static inline struct rte_mbuf *segment(uint16_t port, const struct pd_frame *frame)
{
	struct rte_mbuf *m = header_of(frame->frame);

	own(m, OWNER_PORT + port);
	m->data_off = frame->offset;
	m->data_len = frame->len;
	m->pkt_len = frame->len;
	m->ol_flags = 0;
	return m;
}

/* Puts the rest of a packet that is in several frames behind its first one. Returns how many frames. */
static __rte_noinline uint16_t chain(uint16_t port, struct rte_mbuf *head, const struct pd_frame *frames, uint16_t count)
{
	struct rte_mbuf *last = head;
	uint16_t i = 0;

	while ((frames[i].flags & FRAME_MORE) && i + 1 < count) {
		last->next = segment(port, &frames[++i]);
		last = last->next;
		head->pkt_len += last->data_len;
		head->nb_segs++;
	}
	return i;
}

uint16_t pd_send(uint16_t port, uint16_t queue, const struct pd_cache *cache, const struct pd_frame *frames, uint16_t count)
{
	struct rte_mbuf *packets[BURST];
	uint16_t made = 0, at = 0, sent;

	begin(port, cache);
	for (; at < count && made < BURST; at++) {
		struct rte_mbuf *m = segment(port, frames + at);

		if (unlikely(frames[at].flags & FRAME_MORE))
			at += chain(port, m, frames + at, count - at);
		packets[made++] = m;
	}
	sent = rte_eth_tx_burst(port, queue, packets, made);
	if (unlikely(sent < made))
		rte_pktmbuf_free_bulk(packets + sent, made - sent);
	end();
	return sent;
}
