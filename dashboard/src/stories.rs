//! What people do with the pages, in a real browser; and what attackers send to them, without one.

mod attacks;
mod isolation;
mod joining;
mod own_page;
mod signing_in;
