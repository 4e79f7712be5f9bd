//! Base images: made from packages or taken from elsewhere, kept by content, checked when used.

mod error;
mod names;

pub use error::Error;
pub use names::{
    GuestPath, HostName, ImageId, ImageName, MacAddress, Mirror, NameError, PackageName,
    PasswordHash, PublicKey, Suite, UserName,
};
