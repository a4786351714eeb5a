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

/// Why the groundwork can't be laid; each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// The operating system refused something.
    #[error("{what} {} failed: {error}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// Another process has the data directory or the database file.
    #[error(
        "{} is in use by {holder}, which holds the lock {}. One process at a time may use an embedded database: stop that one, or give this one its own STATIONMASTER_DATA_DIR, or move to PostgreSQL",
        path.display(), lock.display()
    )]
    Locked {
        /// What is in use.
        path: PathBuf,
        /// The lock file.
        lock: PathBuf,
        /// Who has it, as far as known.
        holder: String,
    },
    /// A secret's file can be read by others than its owner.
    #[error(
        "{} can be read or written by others (mode {mode:04o}). Run `chmod 600 {}`, and replace what is in it if somebody may have read it",
        path.display(), path.display()
    )]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The database is there, and the keys to it are not.
    #[error(
        "the database {} exists but its key file {} does not. Put the key file back from where you keep it, or give the keys in STATIONMASTER_MASTER_KEYS. A new key would not open the secrets in the database, so none is made; to start from nothing, move the database away",
        database.display(), keys.display()
    )]
    KeysLost {
        /// The database file.
        database: PathBuf,
        /// Where the keys should be.
        keys: PathBuf,
    },
    /// A file's content is not what it should be; never repeated.
    #[error("{} does not hold {expected}: {wrong}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// What is wrong.
        wrong: String,
    },
    /// Somebody else is about to change the key file, or to move keys by it.
    #[error(
        "another `stationmaster keys` command is at work with the master keys in {}: wait for its end", .0.display()
    )]
    KeysBusy(PathBuf),
    /// PostgreSQL without what only the configuration can give.
    #[error(
        "{name} must be given with PostgreSQL, the same for every process that shares the database. A fresh one: {how}"
    )]
    Required {
        /// The setting.
        name: &'static str,
        /// A shell line that makes a value.
        how: &'static str,
    },
    /// A path that a database URL can't say.
    #[error("the path {} is not UTF-8; choose another STATIONMASTER_DATA_DIR", .0.display())]
    NotUtf8(PathBuf),
}

pub(crate) type Result<T> = std::result::Result<T, DataDirError>;

/// Says what was tried when the system refuses.
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
/// The permission bits of a file, if they let anybody but the owner at it.
pub(crate) fn open_mode(path: &Path) -> Result<Option<u32>> {
    let mode = fs::metadata(path)
        .map_err(io_at("reading", path))?
        .permissions()
        .mode()
        & 0o7777;
    Ok((mode & 0o077 != 0).then_some(mode))
}

/// Reads one of our own secret files, which must be closed to others.
pub(crate) fn read_private(path: &Path) -> Result<Zeroizing<String>> {
    match open_mode(path)? {
        Some(mode) => Err(DataDirError::TooOpen {
            path: path.to_owned(),
            mode,
        }),
        None => read_secret(path),
    }
}

pub(crate) fn read_secret(path: &Path) -> Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    File::open(path)
        .and_then(|file| file.take(SECRET_FILE_BYTES_MAX).read_to_string(&mut text))
        .map_err(io_at("reading", path))?;
    Ok(text)
}

/// Writes a secret so that after a power cut there is the whole file or what was there before: to
/// a file beside it, flushed, then renamed, and the directory flushed. The file is its owner's
/// alone, or gets the owner and mode of what it replaces.
pub(crate) fn write_whole(path: &Path, text: &str, like: Option<&fs::Metadata>) -> Result<()> {
    let mut beside = path.to_owned().into_os_string();
    beside.push(".new");
    let beside = Path::new(&beside);
    let written = write_beside(beside, text, like).and_then(|()| {
        fs::rename(beside, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    });
    written.map_err(|error| {
        // What was begun holds a secret. If it can't be removed it is still its owner's alone.
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
    // A left-over of an earlier try may have another mode.
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
