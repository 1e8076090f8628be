//! Distribution of nodes over devices.

/// One entry of a map from an integer to a list of integers.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IntIntListEntryProto {
    /// The key.
    #[prost(int64, optional, tag = "1")]
    pub key: Option<i64>,
    /// The list. Unpacked: one key for each element.
    #[prost(int64, repeated, packed = "false", tag = "2")]
    pub value: Vec<i64>,
}

/// How one node is spread over the devices of one configuration.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeDeviceConfigurationProto {
    /// The [`DeviceConfigurationProto::name`] of the configuration. Required.
    #[prost(string, optional, tag = "1")]
    pub configuration_id: Option<String>,
    /// How inputs and outputs of the node are split; one entry per tensor.
    #[prost(message, repeated, tag = "2")]
    pub sharding_spec: Vec<ShardingSpecProto>,
    /// The stage of a pipeline the node runs in.
    #[prost(int32, optional, tag = "3")]
    pub pipeline_stage: Option<i32>,
}

/// How one input or output of a node is split or copied over devices.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ShardingSpecProto {
    /// The input or output of the node. Required.
    #[prost(string, optional, tag = "1")]
    pub tensor_name: Option<String>,
    /// The devices that hold shards, as indices into the configuration, or as keys of device groups. Unpacked.
    #[prost(int64, repeated, packed = "false", tag = "2")]
    pub device: Vec<i64>,
    /// The devices of each group, if entries of `device` are keys of groups that hold the same shard.
    #[prost(message, repeated, tag = "3")]
    pub index_to_device_group_map: Vec<IntIntListEntryProto>,
    /// How the axes are split; axes without an entry are not split.
    #[prost(message, repeated, tag = "4")]
    pub sharded_dim: Vec<ShardedDimProto>,
}

/// How one axis of a tensor is split.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ShardedDimProto {
    /// The axis, from -rank to rank - 1; negative ones count from the back. Required.
    #[prost(int64, optional, tag = "1")]
    pub axis: Option<i64>,
    /// The splits: one, or several if a reshape has merged axes that were split separately.
    #[prost(message, repeated, tag = "2")]
    pub simple_sharding: Vec<SimpleShardedDimProto>,
}

/// A split of a dimension into a fixed number of parts.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SimpleShardedDimProto {
    /// How many parts. Required.
    #[prost(int64, optional, tag = "3")]
    pub num_shards: Option<i64>,
    /// The length that is split, in elements.
    #[prost(oneof = "simple_sharded_dim_proto::Dim", tags = "1, 2")]
    pub dim: Option<simple_sharded_dim_proto::Dim>,
}

/// Parts of [`SimpleShardedDimProto`].
pub mod simple_sharded_dim_proto {
    /// The length that is split.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Dim {
        /// A known length.
        #[prost(int64, tag = "1")]
        DimValue(i64),
        /// A symbol, as in shapes.
        #[prost(string, tag = "2")]
        DimParam(String),
    }
}

/// A set of devices to which nodes can be distributed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeviceConfigurationProto {
    /// Its name in [`NodeDeviceConfigurationProto::configuration_id`]. Required.
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    /// How many devices there are. Required.
    #[prost(int32, optional, tag = "2")]
    pub num_devices: Option<i32>,
    /// Their names: none, or `num_devices` of them.
    #[prost(string, repeated, tag = "3")]
    pub device: Vec<String>,
}
