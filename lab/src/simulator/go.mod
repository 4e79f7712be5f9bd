module safetytwin.invalid/simulator

go 1.26.8

require github.com/vmware/govmomi v0.51.0

require github.com/google/uuid v1.6.0 // indirect
