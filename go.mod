module steal

go 1.26.0

require (
	github.com/gobwas/ws v1.5.0
	github.com/mdlayher/socket v0.8.0
	golang.org/x/sys v0.49.0
)

require (
	github.com/gobwas/httphead v0.1.0 // indirect
	golang.org/x/net v0.61.0 // indirect
	golang.org/x/sync v0.24.0 // indirect
)
