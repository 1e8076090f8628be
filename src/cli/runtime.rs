//! The options that choose a runtime.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};

use crate::cli::values::given;
use crate::runtime::given::GivenInput;
use crate::runtime::{Provider, RuntimeKind, RuntimeOptions};

/// The options of the runtime.
#[derive(Debug, Clone, Args)]
pub struct RuntimeArgs {
    /// The runtime of the models.
    ///
    /// `auto`: ONNX Runtime if it is found, otherwise tract.
    #[arg(hide_short_help = true, long, value_enum, hide_possible_values = true, default_value_t = RuntimeChoice::Auto, value_name = "auto|ort|tract")]
    runtime: RuntimeChoice,
    /// ONNX Runtime's shared library, or its folder.
    #[arg(hide_short_help = true, long, value_name = "PATH")]
    onnxruntime: Option<PathBuf>,
    /// ONNX Runtime's execution provider.
    ///
    /// With `cuda`, a node that computes with floating-point tensors on the CPU is an error.
    #[arg(long, value_enum, hide_possible_values = true, default_value_t = Device::Cpu, value_name = "cpu|cuda")]
    provider: Device,
    /// Threads of the runtime; 0: its default.
    #[arg(hide_short_help = true, long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=1024))]
    threads: u16,
    /// Value of a model input, the same in every run.
    ///
    /// A number, which fills the declared shape, or a .npy file. Needed for every input other than token ids, masks,
    /// positions, caches and states of constant size. Encoder outputs without a value are random.
    #[arg(hide_short_help = true, long, value_name = "NAME=VALUE|FILE.npy", value_parser = given)]
    input: Vec<GivenInput>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RuntimeChoice {
    Auto,
    Ort,
    Tract,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Device {
    Cpu,
    Cuda,
}

impl RuntimeArgs {
    /// The options for the library, with graph optimizations on if `optimize`.
    pub fn options(&self, optimize: bool) -> RuntimeOptions {
        RuntimeOptions {
            runtime: match self.runtime {
                RuntimeChoice::Auto => RuntimeKind::Auto,
                RuntimeChoice::Ort => RuntimeKind::Ort,
                RuntimeChoice::Tract => RuntimeKind::Tract,
            },
            onnxruntime: self.onnxruntime.clone(),
            provider: match self.provider {
                Device::Cpu => Provider::Cpu,
                Device::Cuda => Provider::Cuda,
            },
            optimize,
            threads: self.threads.into(),
            given: self.input.clone(),
        }
    }

    /// The same options as arguments for another process of this program.
    pub fn arguments(&self) -> Vec<OsString> {
        let name = |value: Option<PossibleValue>| {
            OsString::from(value.map(|v| v.get_name().to_owned()).unwrap_or_default())
        };
        let mut all: Vec<OsString> = vec![
            "--runtime".into(),
            name(self.runtime.to_possible_value()),
            "--provider".into(),
            name(self.provider.to_possible_value()),
            "--threads".into(),
            self.threads.to_string().into(),
        ];
        if let Some(library) = &self.onnxruntime {
            all.extend(["--onnxruntime".into(), library.into()]);
        }
        all
    }
}
