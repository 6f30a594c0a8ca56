//! What the rounds of ChaCha20 wait for on this processor: how long each vector instruction of a chain waits for the one before, in units of
//! a scalar addition (one cycle), and how many that do not wait go through in that time. docs/performance.md rests on it.

#[cfg(target_arch = "x86_64")]
fn main() {
    use std::arch::asm;
    use std::time::Instant;

    /// Nanoseconds for one of the `$count` parts of a block that is repeated: the least of many times.
    macro_rules! time {
        ($count:literal, $block:literal) => {
            (0..1000)
                .map(|_| {
                    let begun = Instant::now();
                    // SAFETY: registers that are named as written, and nothing else; the caller has seen that they exist.
                    unsafe {
                        asm!(
                            "2:", ".rept 100", $block, ".endr", "sub ecx, 1", "jnz 2b",
                            inout("ecx") 200 => _, out("rax") _, out("xmm0") _, out("xmm1") _, out("xmm2") _,
                            out("xmm3") _, out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                            options(nomem, nostack),
                        )
                    };
                    begun.elapsed().as_nanos() as f64 / (20_000.0 * $count)
                })
                .fold(f64::INFINITY, f64::min)
        };
    }

    let cycle = time!(1.0, "add rax, 1");
    println!("a scalar addition: {cycle:.3} ns");
    let show = |what, ns: f64| println!("{what}: {ns:.3} ns, {:.2} cycles", ns / cycle);
    if !is_x86_feature_detected!("avx512f") {
        println!("no AVX-512 on this processor");
        return;
    }
    show(
        "512 bits, addition after addition",
        time!(1.0, "vpaddd zmm0, zmm0, zmm0"),
    );
    show("XOR after XOR", time!(1.0, "vpxord zmm0, zmm0, zmm1"));
    show("rotation after rotation", time!(1.0, "vprold zmm0, zmm0, 7"));
    let step = time!(
        1.0,
        "vpaddd zmm0, zmm0, zmm1\nvpxord zmm2, zmm2, zmm0\nvprold zmm1, zmm2, 7"
    );
    show("a step: addition, XOR and rotation", step);
    println!("80 steps, which are 20 rounds: {:.0} ns", 80.0 * step);
    let free = time!(
        8.0,
        "vpaddd zmm0, zmm0, zmm0\nvpaddd zmm1, zmm1, zmm1\nvpaddd zmm2, zmm2, zmm2\nvpaddd zmm3, zmm3, zmm3
        vpaddd zmm4, zmm4, zmm4\nvpaddd zmm5, zmm5, zmm5\nvpaddd zmm6, zmm6, zmm6\nvpaddd zmm7, zmm7, zmm7"
    );
    show("additions that do not wait, each", free);
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("for x86-64 only");
}
