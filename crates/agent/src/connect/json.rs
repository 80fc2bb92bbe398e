//! Where the proto3 JSON mapping differs from what serde derives (contract §2.5).
//!
//! Each submodule or function is named in a `#[serde(with = …)]` attribute of the messages.

use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// `null` means the default, like an absent field.
pub(crate) fn null_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A number, a decimal string, or `null` for zero.
pub(crate) fn lenient_u32<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    Ok(optional_u32(deserializer)?.unwrap_or_default())
}

/// A number, a decimal string, or `null` for none.
pub(crate) fn optional_u32<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<u32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Lenient {
        Number(u32),
        Text(String),
        Null,
    }
    match Lenient::deserialize(deserializer)? {
        Lenient::Number(number) => Ok(Some(number)),
        Lenient::Text(text) => text.parse().map(Some).map_err(D::Error::custom),
        Lenient::Null => Ok(None),
    }
}

/// Whether a field has its default and is left out.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Bytes are base64: padded on output, any flavour on input.
pub(crate) mod base64_bytes {
    use base64::Engine;
    use base64::alphabet::{STANDARD, URL_SAFE};
    use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
    use bytes::Bytes;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    const LENIENT: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    const PLAIN: GeneralPurpose = GeneralPurpose::new(&STANDARD, LENIENT);
    const URL: GeneralPurpose = GeneralPurpose::new(&URL_SAFE, LENIENT);

    pub(crate) fn serialize<S: Serializer>(
        bytes: &Bytes,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&base64::display::Base64Display::new(bytes, &PLAIN))
    }

    /// `null` means none.
    pub(crate) fn optional<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Bytes>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else {
            return Ok(None);
        };
        let engine = if text.contains(['-', '_']) {
            URL
        } else {
            PLAIN
        };
        let bytes = engine.decode(text).map_err(D::Error::custom)?;
        Ok(Some(bytes.into()))
    }
}

/// 64-bit numbers are decimal strings.
pub(crate) fn decimal_string<S: serde::Serializer>(
    number: &i64,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}
