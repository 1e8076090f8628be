//! The state of vector registers after a product.

/// Clears the upper halves of the vector registers.
///
/// faer's kernels for AVX-512 (private-gemm-x86 0.1) end without this. Instructions for 128 bits, of which programs for any
/// x86-64 processor consist, then wait for the old upper halves: an `exp` of libm takes over ten times as long.
#[allow(unsafe_code)] // The compiler cannot know that the processor has AVX.
pub fn clear_upper_halves() {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx") {
        // SAFETY: the processor has AVX, and the instruction changes no part of a register that compiled code holds a value
        // in across a call.
        unsafe { std::arch::x86_64::_mm256_zeroupper() }
    }
}
