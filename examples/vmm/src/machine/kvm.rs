// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Opening KVM, and saying what is wrong when it cannot be used.

use kvm_ioctls::{Cap, Kvm};
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The one version of the KVM interface there has been since Linux 2.6.22.
///
/// KVM API, "KVM_GET_API_VERSION".
const API_VERSION: i32 = 12;

/// What this VMM cannot do without.
const REQUIRED: [Cap; 8] = [
    Cap::UserMemory,
    Cap::Irqchip,
    Cap::IrqRouting,
    Cap::Irqfd,
    Cap::Ioeventfd,
    Cap::ExtCpuid,
    Cap::SetTssAddr,
    Cap::SetIdentityMapAddr,
];

/// KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// There is no such device.
    #[error("{} does not exist: is virtualization enabled, and the kvm module loaded?", .0.display())]
    Missing(PathBuf),
    /// The user may not open it.
    #[error("no permission to open {}: is the user in the group kvm?", .0.display())]
    Denied(PathBuf),
    /// It cannot be opened for another reason.
    #[error("cannot open {}: {source}", path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It opens, but does not speak KVM.
    #[error("{} is not a KVM device (API version {version}, not {API_VERSION})", path.display())]
    NotKvm {
        /// The device.
        path: PathBuf,
        /// What it answered.
        version: i32,
    },
    /// The host's KVM is without something that is needed.
    #[error("the host's KVM lacks {0:?}")]
    Lacks(Cap),
    /// No local APICs without an I/O APIC.
    #[error(
        "the host's KVM lacks {lacks:?}, which remapped interrupts need ({source}): use --vtd intremap=off"
    )]
    NoSplit {
        /// What it lacks.
        lacks: Cap,
        /// What it said.
        source: io::Error,
    },
    /// An ioctl failed.
    #[error("KVM refused to {action}: {source}")]
    Refused {
        /// What was attempted.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl KvmError {
    /// For `map_err`: KVM refused `action`.
    pub(crate) fn refused(action: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| KvmError::Refused {
            action,
            source: source.into(),
        }
    }
}

/// Opens the KVM device at `path`, usually `/dev/kvm`, and checks that it can do what is needed.
pub fn open(path: &Path) -> Result<Kvm, KvmError> {
    let name = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| KvmError::Missing(path.to_owned()))?;
    let kvm = Kvm::new_with_path(&name).map_err(|error| {
        let source = io::Error::from(error);
        match source.kind() {
            io::ErrorKind::NotFound => KvmError::Missing(path.to_owned()),
            io::ErrorKind::PermissionDenied => KvmError::Denied(path.to_owned()),
            _ => KvmError::Open {
                path: path.to_owned(),
                source,
            },
        }
    })?;
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(KvmError::NotKvm {
            path: path.to_owned(),
            version,
        });
    }
    match REQUIRED.into_iter().find(|&cap| !kvm.check_extension(cap)) {
        Some(lacking) => Err(KvmError::Lacks(lacking)),
        None => Ok(kvm),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_kvm_is_named() {
        assert!(matches!(
            open(Path::new("/nonexistent/kvm")),
            Err(KvmError::Missing(_))
        ));
        assert!(matches!(
            open(Path::new("/dev/null")),
            Err(KvmError::NotKvm { version: -1, .. })
        ));
        assert!(matches!(open(Path::new("/")), Err(KvmError::Open { .. })));
    }
}
