/*
 * Everything that needs DPDK's headers: its structs and inline functions. Rust calls in here once for a burst.
 *
 * An mbuf's header belongs to the frame of the same number for the life of the process: header i stands at a fixed distance from header 0, and its
 * buffer is frame i of the engine's arena. To DPDK it is an ordinary, direct mbuf of an ordinary pool, which has an ordinary cache for each worker; what does
 * not fit there comes from and goes to the arena, by `take` and `give`. A field of the header says whether the engine has the frame: on the way from
 * everybody else to the engine it is looked at.
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
#include <rte_ether.h>
#include <rte_ip.h>
#include <rte_mbuf.h>
#include <rte_mbuf_dyn.h>
#include <rte_mempool.h>
#include <rte_version.h>

#define OPS_NAME "patronus"

/* Frames that are asked for together at most. */
#define SOME 512

/* Bytes from one header to the next: DPDK's part before it, and the header. An odd number of cache lines, so that they share no set. */
#define HEADER_STRIDE (3 * RTE_CACHE_LINE_SIZE)

/* The same of what the engine knows of a frame; headers are three times as far apart. */
#define LINE_STRIDE RTE_CACHE_LINE_SIZE

/* Free frames that a worker has in the pool's own cache: twice that, less a half. */
#define CACHED 128u

/* A worker has at most this part of the frames there. */
#define CACHED_PART 64u

/* Bits of pd_info's offloads. */
#define OFFLOAD_IPV4 1u
#define OFFLOAD_UDP 2u
#define OFFLOAD_TCP 4u
#define OFFLOAD_SEGMENTS 8u

/* Bits of pd_frame's flags. */
#define FRAME_BAD 1u
#define FRAME_MORE 2u

/* Checksums that a packet has left to the port, in its place. */
#define UNFINISHED_AT 61
#define UNFINISHED (3ULL << UNFINISHED_AT)

static struct rte_mempool *pool;
static uintptr_t first_header;
static struct pd_memory arena;
static uint8_t removed[RTE_MAX_ETHPORTS];

/* The pool's caches that are workers'. Number 0 is never one: DPDK has the main thread use it. */
static uint8_t taken[RTE_MAX_LCORE];

/* The engine's cache of the worker that is in a call of ours. */
static __thread void *worker_cache __attribute__((tls_model("initial-exec")));

/*
 * A word of each header, its last one: where the frame's line is, as long as somebody else has the frame (a driver, or a worker's cache in the pool); 0
 * if the engine has it. Others only look, to count.
 */
#define LENT_AT (sizeof(struct rte_mbuf) - sizeof(uintptr_t))

static inline uintptr_t *lent_at(struct rte_mbuf *m)
{
	return RTE_MBUF_DYNFIELD(m, LENT_AT, uintptr_t *);
}

static inline uint32_t frame_of(const struct rte_mbuf *m)
{
	return ((uintptr_t)m - first_header) / HEADER_STRIDE;
}

static inline struct rte_mbuf *header_of(uint32_t frame)
{
	return (struct rte_mbuf *)(first_header + (uintptr_t)frame * HEADER_STRIDE);
}

static inline void lend(struct rte_mbuf *m, uintptr_t line)
{
	__atomic_store_n(lent_at(m), line, __ATOMIC_RELAXED);
}

static __rte_noinline __rte_cold void given_twice(const struct rte_mbuf *m)
{
	rte_panic("a driver gave frame %u back twice\n", frame_of(m));
}

/* What comes to the engine from elsewhere: the frame's line. A frame that the engine has would be two packets. */
static inline uintptr_t take_back(struct rte_mbuf *m)
{
	uintptr_t line = *lent_at(m);

	if (unlikely(line == 0))
		given_twice(m);
	__atomic_store_n(lent_at(m), 0, __ATOMIC_RELAXED);
	return line;
}

/*
 * A call for a worker: frames that drivers take and give meanwhile come from and go to the pool's cache of its number, by DPDK's own inline functions; and
 * if that is empty or full, its cache of the engine's.
 */
static inline unsigned int begin(struct pd_worker worker)
{
	unsigned int was = RTE_PER_LCORE(_lcore_id);

	worker_cache = worker.cache;
	RTE_PER_LCORE(_lcore_id) = worker.number;
	return was;
}

static inline void end(unsigned int was)
{
	worker_cache = NULL;
	RTE_PER_LCORE(_lcore_id) = was;
}

/* A call for nobody: frames come from and go to the engine's shared list. */
static const struct pd_worker nobody = {.cache = NULL, .number = LCORE_ID_ANY};

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
	uint32_t some[SOME];
	unsigned int i, done, now;

	for (done = 0; done < count; done += now) {
		now = RTE_MIN(count - done, (unsigned int)SOME);
		for (i = 0; i < now; i++) {
			take_back(objects[done + i]);
			some[i] = frame_of(objects[done + i]);
		}
		arena.give(worker_cache, some, now);
	}
	return 0;
}

static int ops_dequeue(struct rte_mempool *mp, void **objects, unsigned int count)
{
	uint32_t some[SOME];
	unsigned int i, done, now;

	for (done = 0; done < count; done += now) {
		now = RTE_MIN(count - done, (unsigned int)SOME);
		if (arena.take(worker_cache, some, now) != now) {
			ops_enqueue(mp, objects, done);
			return -ENOBUFS;
		}
		for (i = 0; i < now; i++) {
			struct rte_mbuf *m = header_of(some[i]);

			lend(m, arena.lines + some[i] * (uintptr_t)LINE_STRIDE);
			objects[done + i] = m;
		}
	}
	return 0;
}

static unsigned int ops_count(const struct rte_mempool *mp)
{
	return arena.count - pd_held();
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

	pool = rte_mempool_create_empty("patronus", arena.count, sizeof(struct rte_mbuf), RTE_MIN(CACHED, arena.count / CACHED_PART),
					sizeof(private), SOCKET_ID_ANY,
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
		.name = "patronus_lent",
		.size = sizeof(uintptr_t),
		.align = sizeof(uintptr_t),
	};
	int rc;

	arena = *memory;
	if (rte_mbuf_dynfield_register_offset(&field, LENT_AT) < 0)
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
	if (arena.line_stride != LINE_STRIDE || pool->header_size + pool->elt_size + pool->trailer_size != HEADER_STRIDE)
		return -EPROTO;
	first_header = (uintptr_t)arena.headers + pool->header_size;
	init_headers();
	return 0;
}

int pd_is_placed(uint32_t frame)
{
	return rte_mbuf_iova_get(header_of(frame)) != RTE_BAD_IOVA;
}

uint32_t pd_held(void)
{
	uint32_t i, held = 0;

	for (i = 0; i < arena.count; i++)
		held += __atomic_load_n(lent_at(header_of(i)), __ATOMIC_RELAXED) != 0;
	for (i = 0; i < RTE_MAX_LCORE && pool->cache_size > 0; i++)
		held -= __atomic_load_n(&pool->local_cache[i].len, __ATOMIC_RELAXED);
	return held;
}

/* --- The pool's caches, one for each worker. From the last one: DPDK gives threads of its own the first. --- */

uint32_t pd_open_cache(void)
{
	uint32_t number;

	for (number = RTE_MAX_LCORE - 1; number > 0; number--)
		if (!__atomic_exchange_n(&taken[number], 1, __ATOMIC_ACQUIRE))
			return number;
	return LCORE_ID_ANY;
}

void pd_empty_cache(struct pd_worker worker)
{
	struct rte_mempool_cache *cache = rte_mempool_default_cache(pool, worker.number);
	unsigned int was;

	/* A driver that is filling it is where this was called from: it has taken what there was. */
	if (cache == NULL || cache->len == 0)
		return;
	was = begin(worker);
	rte_mempool_cache_flush(cache, pool);
	end(was);
}

void pd_close_cache(uint32_t number)
{
	if (number < RTE_MAX_LCORE)
		__atomic_store_n(&taken[number], 0, __ATOMIC_RELEASE);
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
	unsigned int was;
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
	was = begin(nobody);
	*step = "make the device's queues";
	rc = make_queues(port, setup, &info, &conf);
	if (rc == 0) {
		*step = "start the device";
		removed[port] = 0;
		rc = rte_eth_dev_start(port);
	}
	end(was);
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
	unsigned int was = begin(nobody);
	int rc;

	rte_eth_dev_callback_unregister(port, RTE_ETH_EVENT_INTR_RMV, on_removal, NULL);
	rc = rte_eth_dev_stop(port);
	if (rc == 0)
		rc = rte_eth_dev_close(port);
	end(was);
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

static inline void unusual(struct rte_mbuf *m, struct pd_frame *frame)
{
	uint64_t ip = m->ol_flags & RTE_MBUF_F_RX_IP_CKSUM_MASK, l4 = m->ol_flags & RTE_MBUF_F_RX_L4_CKSUM_MASK;

	frame->frame = frame_of(m);
	frame->len = m->pkt_len;
	frame->offset = m->data_off;
	frame->flags = ip == RTE_MBUF_F_RX_IP_CKSUM_BAD || l4 == RTE_MBUF_F_RX_L4_CKSUM_BAD ? FRAME_BAD : 0;
	/* Stays lent until pd_gather. */
	if (m->nb_segs > 1)
		frame->flags |= FRAME_MORE;
	else
		take_back(m);
}

/* Two words of an mbuf that lie together: what begins with `rearm_data`, and `ol_flags`. */
typedef uint64_t words __attribute__((vector_size(16), may_alias));

/* What the headers of a burst say, all together. */
struct seen {
	words words;
	uint64_t places;
	/* Of fewer than 2^16 places: none reaches into what is next to it. */
	uint64_t sum;
};

static inline void look(struct rte_mbuf *m, struct pd_packet *packet, struct seen *seen)
{
	uint64_t place = (uint64_t)m->data_off << 32 | m->pkt_len;

	seen->words |= *(const words *)&m->rearm_data;
	seen->places |= place;
	seen->sum += place;
	packet->place = place;
	packet->line = take_back(m);
}

/* Whether all packets are frames with good bytes in them that end early enough. Where it says no, that may be so all the same. */
static inline int are_usual(const struct seen *seen, uint32_t room)
{
	struct rte_mbuf any;

	memcpy(&any.rearm_data, &seen->words, sizeof(words));
	return any.nb_segs <= 1 && any.data_off + (uint32_t)seen->places <= room && !(any.ol_flags & (RTE_MBUF_F_RX_IP_CKSUM_BAD | RTE_MBUF_F_RX_L4_CKSUM_BAD));
}

/* What is more than that, and what came behind it. */
static __rte_noinline void receive_unusual(struct pd_received *received, struct rte_mbuf **found, unsigned int count)
{
	unsigned int i;

	received->unusual = count;
	for (i = 0; i < count; i++)
		unusual(found[i], received->frames + i);
}

void pd_receive(uint16_t port, uint16_t queue, struct pd_worker worker, struct pd_received *received)
{
	const unsigned int most = received->count < BURST ? received->count : BURST;
	struct pd_packet *packets = received->packets;
	struct rte_mbuf *found[BURST];
	unsigned int was = begin(worker);
	struct seen seen = {.sum = 0};
	unsigned int count, i;

	count = rte_eth_rx_burst(port, queue, found, most);
	for (i = 0; i + 4 <= count; i += 4) {
		look(found[i], packets + i, &seen);
		look(found[i + 1], packets + i + 1, &seen);
		look(found[i + 2], packets + i + 2, &seen);
		look(found[i + 3], packets + i + 3, &seen);
	}
	for (; i < count; i++)
		look(found[i], packets + i, &seen);
	received->unusual = 0;
	if (unlikely(!are_usual(&seen, arena.room))) {
		for (i = 0; i < count; i++)
			lend(found[i], packets[i].line);
		receive_unusual(received, found, count);
		seen.sum = count = 0;
	}
	received->count = count;
	received->bytes = (uint32_t)seen.sum;
	end(was);
}

uint32_t pd_gather(uint32_t frame, struct pd_worker worker, void *to, uint32_t room)
{
	struct rte_mbuf *head = header_of(frame), *m;
	unsigned int was = begin(worker);
	uint32_t len = 0;

	for (m = head; m != NULL && room - len >= m->data_len; m = m->next) {
		memcpy((char *)to + len, rte_pktmbuf_mtod(m, char *), m->data_len);
		len += m->data_len;
	}
	if (m != NULL)
		len = 0;
	rte_pktmbuf_free(head);
	end(was);
	return len;
}

/*
 * What the engine has is as DPDK leaves an mbuf that is free or was received: one segment, none behind it, one reference. So only what differs is
 * written.
 */
static inline void fill(struct rte_mbuf *m, uintptr_t line, uint16_t offset, uint32_t len)
{
	m->data_off = offset;
	m->data_len = len;
	m->pkt_len = len;
	m->ol_flags = 0;
	lend(m, line);
}

/* Gives the driver packets. Returns how many it took; the others are free. */
static inline uint16_t give(const struct pd_queue *queue, struct pd_worker worker, struct rte_mbuf **packets, uint16_t count)
{
	unsigned int was = begin(worker);
	uint16_t sent = rte_eth_tx_burst(queue->port, queue->queue, packets, count);

	if (unlikely(sent < count))
		rte_pktmbuf_free_bulk(packets + sent, count - sent);
	end(was);
	return sent;
}

/* Packets that can be sent as they are. */
struct sendable {
	uintptr_t lines, lines_len, first;
	uint32_t longest;
};

/* The mbuf of a packet; NULL if it is in a frame that devices do not reach, or empty, or too long. */
static inline struct rte_mbuf *make(const struct pd_packet *packet, const struct sendable *of)
{
	uintptr_t behind = packet->line - of->lines;
	uint32_t len = packet->place;
	struct rte_mbuf *m;

	if (unlikely(behind >= of->lines_len) || unlikely(len - 1 >= of->longest))
		return NULL;
	m = (struct rte_mbuf *)(of->first + behind * (HEADER_STRIDE / LINE_STRIDE));
	fill(m, packet->line, packet->place >> 32, len);
	return m;
}

/*
 * Asks the device for the checksums that packets have left, up to the first packet with one that the device does not make: it and those behind it are
 * the engine's again. Returns how many are before.
 */
static __rte_noinline unsigned int finish(const struct pd_queue *queue, const struct pd_packet *packets, struct rte_mbuf **made, unsigned int count)
{
	static const uint64_t flags[] = {
		[1] = RTE_MBUF_F_TX_IPV4 | RTE_MBUF_F_TX_IP_CKSUM | RTE_MBUF_F_TX_UDP_CKSUM,
		[2] = RTE_MBUF_F_TX_IPV6 | RTE_MBUF_F_TX_UDP_CKSUM,
	};
	unsigned int i, end;

	for (i = 0; i < count; i++) {
		unsigned int kind = (packets[i].place & UNFINISHED) >> UNFINISHED_AT;

		if (kind == 0)
			continue;
		if (!(queue->checksums & 1u << kind))
			break;
		made[i]->ol_flags = flags[kind];
		made[i]->l2_len = RTE_ETHER_HDR_LEN;
		made[i]->l3_len = kind == 1 ? sizeof(struct rte_ipv4_hdr) : sizeof(struct rte_ipv6_hdr);
	}
	for (end = i; end < count; end++)
		take_back(made[end]);
	return i;
}

uint16_t pd_send(const struct pd_queue *queue, struct pd_worker worker, const struct pd_packet *packets, uint16_t count, struct pd_sent *sent)
{
	const struct sendable of = {arena.lines, (uintptr_t)arena.count * LINE_STRIDE, first_header, queue->longest};
	const unsigned int most = count < BURST ? count : BURST;
	struct rte_mbuf *made[BURST];
	uint64_t sum = 0, any = 0;
	unsigned int i, at;

	for (i = 0; i + 4 <= most; i += 4) {
		if ((made[i] = make(packets + i, &of)) == NULL || (made[i + 1] = make(packets + i + 1, &of)) == NULL ||
		    (made[i + 2] = make(packets + i + 2, &of)) == NULL || (made[i + 3] = make(packets + i + 3, &of)) == NULL)
			break;
		sum += packets[i].place + packets[i + 1].place + packets[i + 2].place + packets[i + 3].place;
		any |= packets[i].place | packets[i + 1].place | packets[i + 2].place | packets[i + 3].place;
	}
	for (; i < most && (made[i] = make(packets + i, &of)) != NULL; i++) {
		sum += packets[i].place;
		any |= packets[i].place;
	}
	at = i;
	if (unlikely(any & UNFINISHED))
		i = finish(queue, packets, made, i);
	sent->packets = i > 0 ? give(queue, worker, made, i) : 0;
	while (unlikely(at > sent->packets))
		sum -= packets[--at].place;
	sent->bytes = (uint32_t)sum;
	return i;
}

uint16_t pd_send_pieces(const struct pd_queue *queue, struct pd_worker worker, const struct pd_frame *pieces, uint16_t count)
{
	struct rte_mbuf *head = NULL, *last = NULL;
	uint16_t i;

	for (i = 0; i < count; i++) {
		struct rte_mbuf *m = header_of(pieces[i].frame);

		fill(m, arena.lines + pieces[i].frame * (uintptr_t)LINE_STRIDE, pieces[i].offset, pieces[i].len);
		if (head == NULL) {
			head = m;
		} else {
			last->next = m;
			head->pkt_len += m->data_len;
			head->nb_segs++;
		}
		last = m;
	}
	return give(queue, worker, &head, 1);
}

/* --- For tests. --- */

void pd_look(uint32_t frame, struct pd_asked *asked)
{
	const struct rte_mbuf *m = header_of(frame);

	*asked = (struct pd_asked){
		.ip = !!(m->ol_flags & RTE_MBUF_F_TX_IP_CKSUM),
		.udp = (m->ol_flags & RTE_MBUF_F_TX_L4_MASK) == RTE_MBUF_F_TX_UDP_CKSUM,
		.version = m->ol_flags & RTE_MBUF_F_TX_IPV4 ? 4 : m->ol_flags & RTE_MBUF_F_TX_IPV6 ? 6 : 0,
		.l2_len = m->l2_len,
		.l3_len = m->l3_len,
	};
}
