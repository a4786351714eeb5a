//! Reads and writes files that hold secrets, and has the error of all work on the program's own
//! files.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

/// The mode of a file that only its owner may read and write.
pub(crate) const FILE_MODE: u32 = 0o600;
/// The longest key or token file that is read, bytes.
const SECRET_FILE_BYTES_MAX: u64 = 64 * 1024;

/// What is wrong with the data directory or a secret's file. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// The operating system refused an operation.
    #[error("{what} {} failed: {error}", path.display())]
    Io {
        /// The operation.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// Another process uses the data directory or the database file.
    #[error(
        "{} is in use by {holder}, which holds the lock {}. One process at a time may use an embedded database: stop that one, or give this one its own STATIONMASTER_DATA_DIR, or move to PostgreSQL",
        path.display(), lock.display()
    )]
    Locked {
        /// The directory or file that is in use.
        path: PathBuf,
        /// The lock file.
        lock: PathBuf,
        /// The process that holds the lock, as far as known.
        holder: String,
    },
    /// The file of a secret can be read or written by others than its owner.
    #[error(
        "{} can be read or written by others (mode {mode:04o}). Run `chmod 600 {}`, and replace its content if somebody may have read it",
        path.display(), path.display()
    )]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The database exists, but the key file does not.
    #[error(
        "the database {} exists but its key file {} does not. Restore the key file from your backup, or give the keys in STATIONMASTER_MASTER_KEYS. A new key would not decrypt the secrets in the database, so none is created; to start with an empty database, move this one away",
        database.display(), keys.display()
    )]
    KeysLost {
        /// The database file.
        database: PathBuf,
        /// The path of the key file.
        keys: PathBuf,
    },
    /// The content of a file is malformed. The text never contains any of it.
    #[error("{} does not hold {expected}: {wrong}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What the file should contain.
        expected: &'static str,
        /// What is wrong.
        wrong: String,
    },
    /// Another command is changing the key file, or rewraps keys.
    #[error(
        "another `stationmaster keys` command is using the master keys in {}: wait until it ends", .0.display()
    )]
    KeysBusy(PathBuf),
    /// A setting is missing that PostgreSQL requires.
    #[error(
        "{name} must be given with PostgreSQL, the same for every process that shares the database. To generate one: {how}"
    )]
    Required {
        /// The setting.
        name: &'static str,
        /// A shell command that generates a value.
        how: &'static str,
    },
    /// A path that a database URL can't contain.
    #[error("the path {} is not UTF-8; choose another STATIONMASTER_DATA_DIR", .0.display())]
    NotUtf8(PathBuf),
}

pub(crate) type Result<T> = std::result::Result<T, DataDirError>;

/// Adds the operation and the path to an error of the operating system.
pub(crate) fn io_at<'a>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> DataDirError + 'a {
    move |error| DataDirError::Io {
        what,
        path: path.to_owned(),
        error,
    }
}
/// The permission bits of a file, if they allow access to others than its owner; else `None`.
pub(crate) fn open_mode(path: &Path) -> Result<Option<u32>> {
    let mode = fs::metadata(path)
        .map_err(io_at("reading", path))?
        .permissions()
        .mode()
        & 0o7777;
    Ok((mode & 0o077 != 0).then_some(mode))
}

/// Reads a secret file that this program created. Only its owner may have access.
pub(crate) fn read_private(path: &Path) -> Result<Zeroizing<String>> {
    match open_mode(path)? {
        Some(mode) => Err(DataDirError::TooOpen {
            path: path.to_owned(),
            mode,
        }),
        None => read_secret(path),
    }
}

/// Reads a secret file, whoever may read it.
pub(crate) fn read_secret(path: &Path) -> Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    File::open(path)
        .and_then(|file| file.take(SECRET_FILE_BYTES_MAX).read_to_string(&mut text))
        .map_err(io_at("reading", path))?;
    Ok(text)
}

/// Writes a secret to a file. After a power cut the file is either complete or as it was before:
/// the text is written to a new file and flushed, the new file is renamed, and the directory is
/// flushed. Only the owner may read and write the file, unless it gets the owner and mode of
/// `like`.
pub(crate) fn write_whole(path: &Path, text: &str, like: Option<&fs::Metadata>) -> Result<()> {
    let mut beside = path.to_owned().into_os_string();
    beside.push(".new");
    let beside = Path::new(&beside);
    let written = write_beside(beside, text, like).and_then(|()| {
        fs::rename(beside, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    });
    written.map_err(|error| {
        // The new file may contain a part of the secret. If it can't be removed, still only its
        // owner may read it.
        let _ = fs::remove_file(beside);
        io_at("writing", path)(error)
    })
}

fn write_beside(beside: &Path, text: &str, like: Option<&fs::Metadata>) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(FILE_MODE)
        .open(beside)?;
    // A file left by an earlier try may have another mode.
    file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    if let Some(like) = like {
        let now = file.metadata()?;
        if (now.uid(), now.gid()) != (like.uid(), like.gid()) {
            fchown(&file, Some(like.uid()), Some(like.gid()))?;
        }
        file.set_permissions(like.permissions())?;
    }
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}
