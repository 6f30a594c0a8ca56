/* ChaCha20-Poly1305 of Intel's ipsec-mb over packets in place, called by binding.rs on the measuring thread. The library's structures
 * stay on this side: their layout changes from version to version. */
#include <intel-ipsec-mb.h>
#include <string.h>

/* Packets in one call, as in binding.rs. */
#define BURST_MAX 64

/* One packet, as in binding.rs. */
struct patronus_packet {
    const uint8_t *key; /* 32 bytes */
    uint8_t nonce[12];
    uint8_t *text; /* len bytes, the tag's 16 behind them */
    uint64_t len;
};

IMB_MGR *patronus_imb_new(void)
{
    IMB_MGR *mgr = alloc_mb_mgr(0);
    if (mgr == NULL)
        return NULL;
    init_mb_mgr_auto(mgr, NULL);
    if (imb_get_errno(mgr) != 0) {
        free_mb_mgr(mgr);
        return NULL;
    }
    return mgr;
}

void patronus_imb_free(IMB_MGR *mgr)
{
    free_mb_mgr(mgr);
}

const char *patronus_imb_version(void)
{
    return imb_get_version_str();
}

/* The instructions that the manager has chosen. */
const char *patronus_imb_arch(const IMB_MGR *mgr)
{
    switch (mgr->used_arch) {
    case IMB_ARCH_SSE:
        return "SSE";
    case IMB_ARCH_AVX:
        return "AVX";
    case IMB_ARCH_AVX2:
        return "AVX2";
    case IMB_ARCH_AVX512:
        return "AVX-512";
    default:
        return "none";
    }
}

/* 1 if the tags differ, in constant time. */
static int differ(const uint8_t *a, const uint8_t *b)
{
    uint64_t x[2], y[2];
    memcpy(x, a, 16);
    memcpy(y, b, 16);
    return ((x[0] ^ y[0]) | (x[1] ^ y[1])) != 0;
}

/* Packet after packet by the library's direct calls. Returns how many were not done, or not authentic. */
size_t patronus_imb_direct(IMB_MGR *mgr, const struct patronus_packet *packets, size_t count, int open)
{
    struct chacha20_poly1305_context_data ctx;
    uint8_t tag[16];
    size_t bad = 0;
    for (size_t i = 0; i < count; i++) {
        const struct patronus_packet *p = &packets[i];
        IMB_CHACHA20_POLY1305_INIT(mgr, p->key, &ctx, p->nonce, NULL, 0);
        if (open) {
            IMB_CHACHA20_POLY1305_DEC_UPDATE(mgr, p->key, &ctx, p->text, p->text, p->len);
            IMB_CHACHA20_POLY1305_DEC_FINALIZE(mgr, &ctx, tag, sizeof(tag));
            bad += differ(tag, p->text + p->len);
        } else {
            IMB_CHACHA20_POLY1305_ENC_UPDATE(mgr, p->key, &ctx, p->text, p->text, p->len);
            IMB_CHACHA20_POLY1305_ENC_FINALIZE(mgr, &ctx, p->text + p->len, sizeof(tag));
        }
    }
    return bad;
}

static void prepare(IMB_JOB *job, const struct patronus_packet *p, uint8_t *tag, int open)
{
    job->cipher_mode = IMB_CIPHER_CHACHA20_POLY1305;
    job->hash_alg = IMB_AUTH_CHACHA20_POLY1305;
    job->cipher_direction = open ? IMB_DIR_DECRYPT : IMB_DIR_ENCRYPT;
    job->chain_order = open ? IMB_ORDER_HASH_CIPHER : IMB_ORDER_CIPHER_HASH;
    job->enc_keys = p->key;
    job->dec_keys = p->key;
    job->key_len_in_bytes = 32;
    job->u.CHACHA20_POLY1305.aad = NULL;
    job->u.CHACHA20_POLY1305.aad_len_in_bytes = 0;
    job->u.CHACHA20_POLY1305.ctx = NULL;
    job->src = p->text;
    job->dst = p->text;
    job->cipher_start_src_offset_in_bytes = 0;
    job->hash_start_src_offset_in_bytes = 0;
    job->msg_len_to_cipher_in_bytes = p->len;
    job->msg_len_to_hash_in_bytes = p->len;
    job->iv = p->nonce;
    job->iv_len_in_bytes = sizeof(p->nonce);
    job->auth_tag_output = tag;
    job->auth_tag_output_len_in_bytes = 16;
}

/* All packets as one burst of jobs, which is how VPP and DPDK call the library. Returns how many were not done, or not authentic. */
size_t patronus_imb_burst(IMB_MGR *mgr, const struct patronus_packet *packets, size_t count, int open)
{
    IMB_JOB *jobs[BURST_MAX];
    uint8_t tags[BURST_MAX][16];
    size_t bad = 0;
    if (count > BURST_MAX || IMB_GET_NEXT_BURST(mgr, (uint32_t)count, jobs) != count)
        return count;
    for (size_t i = 0; i < count; i++)
        prepare(jobs[i], &packets[i], open ? tags[i] : packets[i].text + packets[i].len, open);
    /* Jobs of this cipher are done when they are submitted: none is left to be flushed. */
    if (IMB_SUBMIT_BURST(mgr, (uint32_t)count, jobs) != count)
        return count;
    for (size_t i = 0; i < count; i++) {
        bad += jobs[i]->status != IMB_STATUS_COMPLETED;
        if (open)
            bad += differ(tags[i], packets[i].text + packets[i].len);
    }
    return bad;
}
