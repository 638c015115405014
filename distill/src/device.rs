//! The device a run computes on, chosen by name at run time.

use std::fmt;
use std::str::FromStr;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A device by name: `cpu`, or `cuda:N` for the N-th NVIDIA GPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// This machine's processor.
    #[default]
    Cpu,
    /// The NVIDIA GPU with this number, from 0.
    Cuda(usize),
}

/// Number format of the matrix products; parameters, softmax and normalisation stay f32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats throughout.
    #[default]
    F32,
    /// bfloat16 products over f32 master weights.
    Bf16,
}

/// Why a device cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DeviceError {
    /// The name is not one of a device.
    #[error("unknown device `{0}`")]
    Unknown(String),
    /// Processor and GPU in one list.
    #[error("devices `{0}`: a run computes on the CPU or on GPUs, not on both")]
    Mixed(String),
    /// A GPU that is named more than once.
    #[error("device `{0}` is named twice")]
    Twice(DeviceChoice),
    /// This binary has no CUDA support.
    #[error("device `cuda:{0}`: this binary was built without CUDA")]
    NotBuilt(usize),
    /// A library of the driver or the toolkit is not installed.
    #[error("device `cuda:{index}`: {library} cannot be loaded: {message}")]
    NoLibrary {
        /// The GPU asked for.
        index: usize,
        /// The library.
        library: &'static str,
        /// What the loader said.
        message: String,
    },
    /// The driver is installed but does not answer.
    #[error("device `cuda:{index}`: the NVIDIA driver failed with code {code}")]
    Driver {
        /// The GPU asked for.
        index: usize,
        /// The driver's `CUresult`.
        code: i32,
    },
    /// There are fewer GPUs.
    #[error("device `cuda:{index}`: the machine has {available} CUDA devices")]
    Absent {
        /// The GPU asked for.
        index: usize,
        /// GPUs there are.
        available: usize,
    },
}

impl DeviceError {
    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unknown(_) => "devices are `cpu` and `cuda:0`, `cuda:1`, ...".to_owned(),
            Self::Mixed(_) | Self::Twice(_) => {
                "name different GPUs, as in --device cuda:0,cuda:1".to_owned()
            }
            Self::NotBuilt(_) => "cargo build --release --features cuda".to_owned(),
            Self::NoLibrary { .. } => {
                "install the NVIDIA driver and the CUDA runtime compiler (NVRTC), or use --device cpu"
                    .to_owned()
            }
            Self::Driver { .. } => "does `nvidia-smi` work? Otherwise use --device cpu".to_owned(),
            Self::Absent { available: 0, .. } => "use --device cpu".to_owned(),
            Self::Absent { available, .. } => {
                format!("use a number from 0 to {}", available - 1)
            }
        })
    }
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(name: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown(name.to_owned());
        if name == "cpu" {
            return Ok(Self::Cpu);
        }
        let number = name.strip_prefix("cuda:").ok_or_else(unknown)?;
        if !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(unknown());
        }
        number.parse().map(Self::Cuda).map_err(|_| unknown())
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => formatter.write_str("cpu"),
            Self::Cuda(index) => write!(formatter, "cuda:{index}"),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = DeviceError;

    fn try_from(name: String) -> Result<Self, DeviceError> {
        name.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> Self {
        choice.to_string()
    }
}

impl DeviceChoice {
    /// Opens the device for inference; add [`Device::autodiff`] to train on it.
    ///
    /// # Errors
    ///
    /// A GPU was asked for and this binary or this machine has none: the driver is asked before
    /// the device is created, so that nothing panics later.
    pub fn open(self) -> Result<Device, DeviceError> {
        match self {
            Self::Cpu => Ok(Device::flex()),
            Self::Cuda(index) => open_cuda(index),
        }
    }
}

/// The devices of a training run, at least one: rows of a step are split over them. The first holds the modules and
/// evaluates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devices(Vec<DeviceChoice>);

impl From<DeviceChoice> for Devices {
    fn from(choice: DeviceChoice) -> Self {
        Self(vec![choice])
    }
}

impl FromStr for Devices {
    type Err = DeviceError;

    fn from_str(names: &str) -> Result<Self, DeviceError> {
        let devices = names
            .split(',')
            .map(str::parse)
            .collect::<Result<Vec<DeviceChoice>, _>>()?;
        for (place, device) in devices.iter().enumerate() {
            if (*device == DeviceChoice::Cpu) != (devices[0] == DeviceChoice::Cpu) {
                return Err(DeviceError::Mixed(names.to_owned()));
            }
            // Shares of one processor compute as one: that is how splitting is tested.
            if *device != DeviceChoice::Cpu && devices[..place].contains(device) {
                return Err(DeviceError::Twice(*device));
            }
        }
        Ok(Self(devices))
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        formatter.write_str(&names.join(","))
    }
}

impl Devices {
    /// The one that holds the modules.
    pub fn first(&self) -> DeviceChoice {
        self.0[0]
    }

    /// Opens all of them, as [`DeviceChoice::open`].
    ///
    /// # Errors
    /// One of them cannot be used.
    pub fn open(&self) -> Result<Vec<Device>, DeviceError> {
        self.0.iter().map(|device| device.open()).collect()
    }
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(index: usize) -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt(index))
}

#[cfg(feature = "cuda")]
fn open_cuda(index: usize) -> Result<Device, DeviceError> {
    let available = driver::count_devices(index)?;
    if index >= available {
        return Err(DeviceError::Absent { index, available });
    }
    driver::find_runtime_compiler(index)?;
    Ok(Device::cuda(index))
}

/// The few questions to the NVIDIA libraries that burn would answer with a panic.
#[cfg(feature = "cuda")]
mod driver {
    use std::ffi::c_int;

    use libloading::{Library, Symbol};

    use super::DeviceError;

    #[cfg(windows)]
    const DRIVER: [&str; 1] = ["nvcuda.dll"];
    #[cfg(not(windows))]
    const DRIVER: [&str; 2] = ["libcuda.so.1", "libcuda.so"];

    #[cfg(windows)]
    const RUNTIME_COMPILER: [&str; 2] = ["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"];
    #[cfg(not(windows))]
    const RUNTIME_COMPILER: [&str; 3] = ["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"];

    pub(super) fn count_devices(index: usize) -> Result<usize, DeviceError> {
        let library = load(index, "the NVIDIA driver (libcuda)", &DRIVER)?;
        let answered = |code: c_int| match code {
            0 => Ok(()),
            code => Err(DeviceError::Driver { index, code }),
        };
        let mut count: c_int = 0;
        answered(initialise(&library))?;
        answered(device_count(&library, &mut count))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    pub(super) fn find_runtime_compiler(index: usize) -> Result<(), DeviceError> {
        load(
            index,
            "the CUDA runtime compiler (libnvrtc)",
            &RUNTIME_COMPILER,
        )
        .map(drop)
    }

    #[expect(
        unsafe_code,
        reason = "loading a library runs its initialisers; NVIDIA's have no preconditions"
    )]
    fn load(
        index: usize,
        library: &'static str,
        candidates: &[&str],
    ) -> Result<Library, DeviceError> {
        let mut message = String::new();
        for candidate in candidates {
            match unsafe { Library::new(*candidate) } {
                Ok(library) => return Ok(library),
                Err(error) => message = error.to_string(),
            }
        }
        Err(DeviceError::NoLibrary {
            index,
            library,
            message,
        })
    }

    /// `CUDA_ERROR_NOT_FOUND`: the driver lacks a function that every version since 2.0 has.
    const NOT_FOUND: c_int = 500;

    #[expect(
        unsafe_code,
        reason = "cuInit has this signature in every driver version"
    )]
    fn initialise(library: &Library) -> c_int {
        unsafe {
            library.get(b"cuInit\0").map_or(
                NOT_FOUND,
                |init: Symbol<'_, unsafe extern "C" fn(u32) -> c_int>| init(0),
            )
        }
    }

    #[expect(
        unsafe_code,
        reason = "cuDeviceGetCount has this signature in every driver version"
    )]
    fn device_count(library: &Library, count: &mut c_int) -> c_int {
        type Count<'a> = Symbol<'a, unsafe extern "C" fn(*mut c_int) -> c_int>;
        unsafe {
            library
                .get(b"cuDeviceGetCount\0")
                .map_or(NOT_FOUND, |ask: Count<'_>| ask(count))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_print() {
        for (name, choice) in [
            ("cpu", DeviceChoice::Cpu),
            ("cuda:0", DeviceChoice::Cuda(0)),
            ("cuda:12", DeviceChoice::Cuda(12)),
        ] {
            assert_eq!(name.parse::<DeviceChoice>().unwrap(), choice);
            assert_eq!(choice.to_string(), name);
        }
    }

    #[test]
    fn other_names_are_refused_with_a_hint() {
        for name in ["gpu", "cuda", "cuda:", "cuda:-1", "cuda:+1", "CPU", ""] {
            let error = name.parse::<DeviceChoice>().unwrap_err();
            assert_eq!(error.to_string(), format!("unknown device `{name}`"));
            assert_eq!(
                error.hint().unwrap(),
                "devices are `cpu` and `cuda:0`, `cuda:1`, ..."
            );
        }
    }

    #[test]
    fn lists_parse_and_print() {
        for names in ["cpu", "cuda:0,cuda:2", "cpu,cpu"] {
            assert_eq!(names.parse::<Devices>().unwrap().to_string(), names);
        }
        let refusal = |names: &str| names.parse::<Devices>().unwrap_err().to_string();
        assert_eq!(refusal("cuda:1,cuda:1"), "device `cuda:1` is named twice");
        assert_eq!(
            refusal("cuda:0,cpu"),
            "devices `cuda:0,cpu`: a run computes on the CPU or on GPUs, not on both"
        );
        assert_eq!(refusal("cuda:0,"), "unknown device ``");
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn cuda_without_the_feature_says_how_to_build_it() {
        let error = DeviceChoice::Cuda(0).open().unwrap_err();
        assert_eq!(
            error.to_string(),
            "device `cuda:0`: this binary was built without CUDA"
        );
        assert_eq!(
            error.hint().unwrap(),
            "cargo build --release --features cuda"
        );
    }
}
