//! The telemetry of ONNX Runtime.

#![allow(unsafe_code)] // Setting a variable is unsafe while another thread reads the environment.

/// The variable that ONNX Runtime reads when it is loaded.
const VARIABLE: &str = "ORT_DISABLE_TELEMETRY";

/// Keeps ONNX Runtime from starting its telemetry in this process and its children, unless the variable
/// `ORT_DISABLE_TELEMETRY` is set already. ONNX Runtime 1.32 for Linux otherwise starts a thread that writes to the cache folder of
/// the user, also where an environment is created with telemetry disabled. To be called by programs only, because a library
/// should not change the environment.
///
/// # Safety
/// No other thread may run.
pub unsafe fn without_telemetry() {
    if std::env::var_os(VARIABLE).is_none() {
        // SAFETY: the caller's promise.
        unsafe { std::env::set_var(VARIABLE, "1") };
    }
}
