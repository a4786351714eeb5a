//! The ground of every HTTP surface: the ways of [`http`] (connections, limits, shares, bodies,
//! errors), the published [`contract`], and its [documentation pages](docs). It knows whose a
//! request is, and nothing of the store or of any resource.

pub mod contract;
pub mod docs;
pub mod http;

#[cfg(test)]
mod probe;
#[cfg(test)]
mod sample;
