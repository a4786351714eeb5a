//! The style sheet and the script. They are part of the program; their addresses contain their
//! hashes, so that browsers may keep them for ever. Both together are 8 KB: they are not packed.

use std::{fmt::Write as _, sync::LazyLock};

use poem::{
    PathPattern, Response,
    http::{HeaderValue, StatusCode, header},
};
use sha2::{Digest as _, Sha256};

use crate::headers;

/// Where assets are.
pub(crate) const PREFIX: &str = "/assets/";

/// A file that pages refer to.
pub(crate) struct Asset {
    name: &'static str,
    ending: &'static str,
    content_type: &'static str,
    content: &'static [u8],
    path: LazyLock<String>,
}

/// The style sheet of every page.
pub(crate) static STYLE: Asset = Asset {
    name: "style",
    ending: "css",
    content_type: "text/css; charset=utf-8",
    content: include_bytes!("../assets/style.css"),
    path: LazyLock::new(|| STYLE.hashed_path()),
};

/// What calls the authenticator.
pub(crate) static PASSKEYS: Asset = Asset {
    name: "passkeys",
    ending: "js",
    content_type: "text/javascript; charset=utf-8",
    content: include_bytes!("../assets/passkeys.js"),
    path: LazyLock::new(|| PASSKEYS.hashed_path()),
};

/// The sign in a tab; without one, browsers ask for `/favicon.ico`.
pub(crate) static ICON: Asset = Asset {
    name: "icon",
    ending: "svg",
    content_type: "image/svg+xml",
    content: include_bytes!("../assets/icon.svg"),
    path: LazyLock::new(|| ICON.hashed_path()),
};

/// Every asset.
pub(crate) static ALL: [&Asset; 3] = [&STYLE, &PASSKEYS, &ICON];

impl Asset {
    fn hashed_path(&self) -> String {
        let hash = Sha256::digest(self.content);
        let mut path = format!("{PREFIX}{}.", self.name);
        for byte in &hash[..8] {
            let _ = write!(path, "{byte:02x}");
        }
        path + "." + self.ending
    }

    /// Its address.
    pub(crate) fn path(&'static self) -> &'static str {
        &self.path
    }
}

/// The asset at this address.
pub(crate) fn answer(path: &str) -> Option<Response> {
    let asset = ALL.iter().find(|asset| asset.path() == path)?;
    let mut response = Response::builder()
        .status(StatusCode::OK)
        .content_type(asset.content_type)
        .body(asset.content);
    headers::protect(&mut response);
    response.set_data(PathPattern("/assets/:name".into()));
    let forever = HeaderValue::from_static("public, max-age=31536000, immutable");
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, forever);
    Some(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_asset_is_kept_for_ever_at_the_address_of_its_content() {
        for asset in ALL {
            let response = answer(asset.path()).unwrap();
            let header = |name| response.header(name).unwrap();
            assert!(header("cache-control").ends_with("immutable"));
            assert_eq!(header("content-type"), asset.content_type);
            let body = response.into_body().into_vec().await.unwrap();
            let hash = Sha256::digest(&body);
            assert!(
                asset
                    .path()
                    .contains(&format!("{:02x}{:02x}", hash[0], hash[1]))
            );
        }
        assert!(answer("/assets/style.css").is_none());
    }
}
